// A synchronized resource over an upstream that is for one thread at a time. One thread is in the upstream when another
// one comes. Arguments: the resource, the upstream. race: two threads that work at the same time, and do not wait for
// each other; guarded: those have a lock around each call.

#include <pmr_debug/pmr_debug.hpp>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <string>
#include <thread>

namespace {

std::atomic<bool> one_is_inside{false};
std::atomic<bool> slow{false};

// Where the upstream gets its memory: the first one to come stays for a while.
class source final : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (slow && !one_is_inside.exchange(true)) {
            std::this_thread::sleep_for(std::chrono::seconds(20));
        }
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

constexpr pmr_debug::policy unchecked{.threads = pmr_debug::threading::unchecked};
constexpr pmr_debug::policy synchronized{};

template <class Resource>
int meet(Resource& top) {
    slow = true;
    std::thread first([&top] { (void)top.allocate(1u << 20, 16); });
    while (!one_is_inside) {
        std::this_thread::yield();
    }
    (void)top.allocate(1u << 20, 16);
    std::puts("nothing was noticed");
    std::_Exit(1);
}

int work_together(std::pmr::memory_resource& upstream, bool guarded) {
    pmr_debug::tracking_resource r(&upstream, {.name = "tables"});
    std::mutex lock;
    const auto work = [&] {
        for (int i = 0; i < 100; ++i) {
            std::unique_lock hold(lock, std::defer_lock);
            if (guarded) {
                hold.lock();
            }
            void* const p = r.allocate(24);
            r.deallocate(p, 24);
        }
    };
    std::thread first(work);
    std::thread second(work);
    first.join();
    second.join();
    std::puts("silent");
    return 0;
}

int with_upstream(const std::string& top, std::pmr::memory_resource& upstream) {
    if (top == "race" || top == "guarded") {
        return work_together(upstream, top == "guarded");
    }
    if (top == "tracking") {
        pmr_debug::tracking_resource r(&upstream, {.name = "tables"});
        return meet(r);
    }
    if (top == "canary") {
        pmr_debug::canary_resource r(&upstream, {.name = "tables"});
        return meet(r);
    }
    if (top == "general_purpose") {
        pmr_debug::general_purpose_resource r(&upstream, {.name = "tables"});
        return meet(r);
    }
    if (top == "end_of_page") {
        pmr_debug::end_of_page_resource r(&upstream, {.name = "tables"});
        return meet(r);
    }
    if (top == "temp") {
        pmr_debug::temp_resource<0, synchronized> r(&upstream, {.name = "tables"});
        return meet(r);
    }
    // Two resources, and a thread for each.
    pmr_debug::tracking_resource r(&upstream, {.name = "tables"});
    pmr_debug::tracking_resource other(&upstream, {.name = "others"});
    slow = true;
    std::thread first([&other] { (void)other.allocate(1u << 20, 16); });
    while (!one_is_inside) {
        std::this_thread::yield();
    }
    (void)r.allocate(1u << 20, 16);
    std::puts("nothing was noticed");
    std::_Exit(1);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string top = argc > 1 ? argv[1] : "tracking";
    const std::string below = argc > 2 ? argv[2] : "pool";
    source memory;
    if (below == "pool") {
        std::pmr::unsynchronized_pool_resource pool(&memory);
        return with_upstream(top, pool);
    }
    if (below == "monotonic") {
        std::pmr::monotonic_buffer_resource buffer(&memory);
        return with_upstream(top, buffer);
    }
    pmr_debug::basic_tracking_resource<unchecked> ours(&memory);
    return with_upstream(top, ours);
}
