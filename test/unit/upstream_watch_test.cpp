// Upstreams for one thread at a time, below resources that many threads use: what is right is not told as wrong.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <list>
#include <memory_resource>
#include <mutex>
#include <thread>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::tracking_resource;

class guarded_pool final : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        const std::scoped_lock hold(lock_);
        return pool_.allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        const std::scoped_lock hold(lock_);
        pool_.deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
    std::mutex lock_;
    std::pmr::unsynchronized_pool_resource pool_;
};

class derived_pool final : public std::pmr::unsynchronized_pool_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        const std::scoped_lock hold(lock_);
        return std::pmr::unsynchronized_pool_resource::do_allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        const std::scoped_lock hold(lock_);
        std::pmr::unsynchronized_pool_resource::do_deallocate(p, bytes, alignment);
    }
    std::mutex lock_;
};

void fill_lists(std::pmr::memory_resource* r, std::mutex* outer) {
    for (int k = 0; k < 20; ++k) {
        const std::unique_lock hold = outer != nullptr ? std::unique_lock(*outer) : std::unique_lock<std::mutex>();
        std::pmr::list<int> l(r);
        for (int i = 0; i < 100; ++i) {
            l.push_back(i);
        }
    }
}

void use_by_two(std::pmr::memory_resource* r, std::mutex* outer = nullptr) {
    std::thread a(fill_lists, r, outer);
    std::thread b(fill_lists, r, outer);
    a.join();
    b.join();
}

TEST(upstream_watch, a_pool_with_a_lock_of_its_own_is_right) {
    collecting_handler errors;
    guarded_pool pool;
    tracking_resource top(&pool, {.handler = &errors});
    use_by_two(&top);
    derived_pool other;
    tracking_resource over(&other, {.handler = &errors});
    use_by_two(&over);
    EXPECT_EQ(errors.size(), 0u);
}

TEST(upstream_watch, a_pool_whose_users_take_a_lock_is_right) {
    collecting_handler errors;
    std::mutex lock;
    std::pmr::unsynchronized_pool_resource pool;
    tracking_resource top(&pool, {.handler = &errors});
    pmr_debug::canary_resource second(&pool, {.handler = &errors});
    use_by_two(&top, &lock);
    use_by_two(&second, &lock);
    EXPECT_EQ(errors.size(), 0u);
    EXPECT_EQ(top.upstream_resource(), &pool);
    EXPECT_EQ(second.upstream_resource(), &pool);
}

// An upstream may call the resource above it: that is one thread.
TEST(upstream_watch, a_call_that_comes_back_is_no_second_thread) {
    struct back final : std::pmr::memory_resource {
        std::pmr::memory_resource* top = nullptr;
        void* do_allocate(std::size_t bytes, std::size_t alignment) override {
            if (std::pmr::memory_resource* const t = std::exchange(top, nullptr); t != nullptr) {
                t->deallocate(t->allocate(8, 8), 8, 8);
            }
            return std::pmr::new_delete_resource()->allocate(bytes, alignment);
        }
        void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
            std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
        }
        [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
            return this == &other;
        }
    } memory;
    collecting_handler errors;
    constexpr pmr_debug::policy unchecked{.threads = pmr_debug::threading::unchecked};
    pmr_debug::basic_canary_resource<unchecked> below(&memory, {.handler = &errors});
    tracking_resource top(&below, {.handler = &errors});
    memory.top = &top;
    top.deallocate(top.allocate(100, 8), 100, 8);
    EXPECT_EQ(errors.size(), 0u);
}

TEST(upstream_watch, other_upstreams_are_called_as_ever) {
    tracking_resource top(std::pmr::new_delete_resource());
    EXPECT_EQ(top.upstream_resource(), std::pmr::new_delete_resource());
    std::pmr::synchronized_pool_resource pool;
    collecting_handler errors;
    tracking_resource over(&pool, {.handler = &errors});
    use_by_two(&over);
    EXPECT_EQ(errors.size(), 0u);
}

}  // namespace
