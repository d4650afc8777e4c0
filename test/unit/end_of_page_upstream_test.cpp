// Over upstreams whose pages are not its to guard: some have little memory, some use the resource they serve, some lie.

#include "support/end_of_page.hpp"

#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <new>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using namespace test_support::end_of_page;
using pmr_debug::limit_resource;
using pmr_debug::tracking_resource;

// ---- Little memory ------------------------------------------------------------------------------------------------

TEST(fence_bounded, retired_memory_goes_back_when_the_upstream_refuses) {
    collecting_handler errors;
    collecting_handler limits;
    tracking_resource account({.handler = &errors});
    limit_resource budget(&account, {.handler = &limits, .limit_bytes = 1 << 20});
    {
        end_of_page_resource resource(&budget, {.handler = &errors});
        for (int i = 0; i < 100; ++i) {
            for (const std::size_t size : {std::size_t{100'000}, std::size_t{900'000}, std::size_t{100}}) {
                void* p = nullptr;
                ASSERT_NO_THROW(p = resource.allocate(size, 8))
                    << "with nothing live, of " << size << " in round " << i;
                resource.deallocate(p, size, 8);
            }
        }
        EXPECT_GT(limits.count(error_kind::limit_exceeded), 0U);
        // What lives does not go back.
        void* const p = resource.allocate(500'000, 8);
        EXPECT_THROW((void)resource.allocate(600'000, 8), std::bad_alloc);
        resource.deallocate(p, 500'000, 8);
    }
    EXPECT_EQ(account.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(fence_bounded, so_does_a_strip_that_was_not_used_up) {
    collecting_handler errors;
    collecting_handler limits;
    limit_resource budget({.handler = &limits, .limit_bytes = 1 << 17});
    end_of_page_resource resource(&budget, {.handler = &errors});
    for (int i = 0; i < 20; ++i) {
        void* const small = resource.allocate(100, 8);
        EXPECT_THROW((void)resource.allocate(80'000, 8), std::bad_alloc) << "a block of the strip lives";
        resource.deallocate(small, 100, 8);
        void* large = nullptr;
        ASSERT_NO_THROW(large = resource.allocate(80'000, 8)) << i;
        resource.deallocate(large, 80'000, 8);
    }
    EXPECT_EQ(resource.check(), 0U);
    EXPECT_EQ(errors.count(), 0U);
}

TEST(fence_bounded, the_oldest_goes_back_first_and_is_verified) {
    collecting_handler errors;
    collecting_handler limits;
    limit_resource budget({.handler = &limits, .limit_bytes = 1 << 20});
    end_of_page_resource resource(&budget, {.handler = &errors});
    void* const oldest = resource.allocate(300'000, 8);
    void* const older = resource.allocate(300'000, 8);
    resource.deallocate(oldest, 300'000, 8);
    resource.deallocate(older, 300'000, 8);
    bytes(oldest)[7] = 1;
    void* const p = resource.allocate(700'000, 8);  // what is damaged stays, the next one has to go
    EXPECT_EQ(errors.count(error_kind::write_after_free), 1U);
    EXPECT_EQ(errors[0].facts.block.address, oldest);
    EXPECT_EQ(resource.stats().retired_units, 1U);
    resource.deallocate(p, 700'000, 8);
    EXPECT_EQ(errors.count(), 1U);
}

// ---- Canaries on both sides
// ------------------------------------------------------------------------------------------

struct fence_canaries : ::testing::TestWithParam<std::tuple<placement, std::size_t>> {
    collecting_handler errors;
    end_of_page_resource resource{
        std::pmr::new_delete_resource(),
        {.handler = &errors, .where = std::get<0>(GetParam()), .canary_bytes = std::get<1>(GetParam())}};

    /// Effects: expects one report of \p kind about the byte at \p bad, of the block \p p.
    void expect_one(error_kind kind, const unsigned char* p, std::size_t size, const unsigned char* bad) {
        ASSERT_EQ(errors.count(), 1U) << size;
        EXPECT_EQ(errors[0].facts.kind, kind) << size;
        EXPECT_EQ(errors[0].facts.block.address, p);
        EXPECT_EQ(errors[0].facts.block.size, size);
        EXPECT_EQ(errors[0].facts.first_bad, bad);
        EXPECT_EQ(errors[0].facts.bad_bytes, 1U);
        errors.clear();
    }
};

constexpr std::size_t canary_sizes[] = {0, 1, 100, 3'900, 4'095, 4'096, 8'192, 12'288, 65'536};
constexpr std::size_t canary_alignments[] = {1, 8, 64, page, 4 * page};

TEST_P(fence_canaries, surround_blocks_that_fill_their_pages) {
    for (const std::size_t size : canary_sizes) {
        for (const std::size_t alignment : canary_alignments) {
            unsigned char* all[20];  // more than a strip
            for (unsigned char*& p : all) {
                p = bytes(resource.allocate(size, alignment));
                EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
            }
            for (unsigned char* const p : all) {
                touch(p - 1, access::write);
                EXPECT_EQ(resource.check(), 1U);
                expect_one(error_kind::underrun, p, size, p - 1);
                resource.deallocate(p, size, alignment);
                expect_one(error_kind::underrun, p, size, p - 1);
            }
            for (unsigned char*& p : all) {
                p = bytes(resource.allocate(size, alignment));
            }
            for (unsigned char* const p : all) {
                touch(p + size, access::write);
                EXPECT_EQ(resource.check(), 1U);
                expect_one(error_kind::overrun, p, size, p + size);
                resource.deallocate(p, size, alignment);
                expect_one(error_kind::overrun, p, size, p + size);
            }
        }
    }
}

TEST_P(fence_canaries, are_verified_after_a_free) {
    for (const std::size_t size : canary_sizes) {
        for (const std::size_t alignment : canary_alignments) {
            for (const bool before : {true, false}) {
                auto* const p = bytes(resource.allocate(size, alignment));
                void* const keeps_the_strip = resource.allocate(size, alignment);
                resource.deallocate(p, size, alignment);
                unsigned char* const bad = before ? p - 1 : p + size;
                touch(bad, access::write);
                EXPECT_EQ(resource.check(), 1U);
                expect_one(error_kind::write_after_free, p, size, bad);
                resource.deallocate(keeps_the_strip, size, alignment);
            }
        }
    }
}

// The twin: blocks are used to their last byte, whoever their neighbours are.
TEST_P(fence_canaries, are_silent_where_all_of_each_block_is_used) {
    struct block {
        void* p;
        std::size_t size;
        std::size_t alignment;
    };
    std::vector<block> all;
    for (int round = 0; round < 4; ++round) {
        for (const std::size_t size : canary_sizes) {
            for (const std::size_t alignment : canary_alignments) {
                all.push_back({resource.allocate(size, alignment), size, alignment});
                std::memset(all.back().p, round, size);
            }
        }
        EXPECT_EQ(resource.check(), 0U);
        for (std::size_t i = 0; i < all.size(); i += 2) {
            std::swap(all[i], all.back());
            resource.deallocate(all.back().p, all.back().size, all.back().alignment);
            all.pop_back();
        }
        EXPECT_EQ(resource.check(), 0U);
    }
    for (const block& b : all) {
        resource.deallocate(b.p, b.size, b.alignment);
    }
    EXPECT_EQ(errors.count(), 0U);
}

INSTANTIATE_TEST_SUITE_P(all, fence_canaries,
                         ::testing::Combine(::testing::Values(placement::before_guard, placement::after_guard),
                                            ::testing::Values(std::size_t{0}, page)));

// ---- Upstreams, and handlers, that use the resource -----------------------------------------------------------------

/// Uses `user` on each call, and on each report that it gets; once at a time.
class fence_user : public pmr_debug::report_handler {
public:
    end_of_page_resource* user = nullptr;
    std::size_t per_call = 1;
    std::size_t uses = 0;
    std::vector<void*> kept;

    fence_user() { kept.reserve(100'000); }

    void use() {
        if (user == nullptr || inside_) {
            return;
        }
        inside_ = true;
        for (std::size_t i = 0; i < per_call; ++i) {
            const std::size_t live = user->stats().live_blocks;
            void* const p = user->allocate(100, 8);
            std::memset(p, 1, 100);
            EXPECT_EQ(user->stats().live_blocks, live + 1);
            if (i % 2 == 0) {
                kept.push_back(p);
            } else {
                user->deallocate(p, 100, 8);
            }
            ++uses;
        }
        inside_ = false;
    }
    void free_kept() {
        for (void* const p : kept) {
            user->deallocate(p, 100, 8);
        }
        kept.clear();
    }
    pmr_debug::action handle(const report&) noexcept override {
        use();
        return pmr_debug::action::carry_on;
    }

private:
    bool inside_ = false;
};

class self_user final : public std::pmr::memory_resource {
public:
    fence_user how;
    std::size_t live_bytes = 0;

private:
    void* do_allocate(std::size_t size, std::size_t alignment) override {
        how.use();
        live_bytes += size;
        return std::pmr::new_delete_resource()->allocate(size, alignment);
    }
    void do_deallocate(void* p, std::size_t size, std::size_t alignment) override {
        how.use();
        live_bytes -= size;
        std::pmr::new_delete_resource()->deallocate(p, size, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST(fence_reentry, an_upstream_may_use_the_resource_it_serves) {
    for (const std::size_t per_call : {1U, 3U, 50U}) {
        collecting_handler errors;
        self_user upstream;
        upstream.how.per_call = per_call;
        {
            end_of_page_resource resource(&upstream, {.handler = &errors, .quarantine_bytes = 1 << 18});
            upstream.how.user = &resource;
            const auto size_of = [](std::size_t i) { return i % 10 == 0 ? std::size_t{20'000} : std::size_t{100}; };
            std::vector<void*> blocks;
            for (std::size_t i = 0; i < 300; ++i) {
                blocks.push_back(resource.allocate(size_of(i), 8));
                std::memset(blocks.back(), 2, size_of(i));
            }
            for (std::size_t i = 0; i < blocks.size(); ++i) {
                EXPECT_EQ(bytes(blocks[i])[size_of(i) - 1], 2);
                resource.deallocate(blocks[i], size_of(i), 8);
            }
            EXPECT_GT(upstream.how.uses, 0U);
            EXPECT_EQ(resource.stats().live_blocks, upstream.how.kept.size());
            upstream.how.per_call = 0;
            upstream.how.free_kept();
            EXPECT_EQ(resource.stats().live_blocks, 0U);
        }
        EXPECT_EQ(upstream.live_bytes, 0U);
        EXPECT_EQ(errors.count(), 0U) << per_call;
    }
}

TEST(fence_reentry, the_handler_of_a_limit_below_may_use_the_resource_above) {
    collecting_handler errors;
    fence_user handler;
    limit_resource budget({.handler = &handler, .limit_bytes = 1 << 20});
    {
        end_of_page_resource resource(&budget, {.handler = &errors});
        handler.user = &resource;
        void* const small = resource.allocate(100, 8);
        void* const p = resource.allocate(500'000, 8);
        EXPECT_THROW((void)resource.allocate(600'000, 8), std::bad_alloc);
        EXPECT_EQ(handler.uses, 1U);
        resource.deallocate(p, 500'000, 8);
        resource.deallocate(small, 100, 8);
        handler.free_kept();
    }
    EXPECT_EQ(errors.count(), 0U);
}

TEST(fence_reentry, threads_that_share_a_bounded_upstream) {
    collecting_handler errors;
    collecting_handler limits;
    tracking_resource account({.handler = &errors});
    limit_resource budget(&account, {.handler = &limits, .limit_bytes = 2 << 20});
    {
        end_of_page_resource resource(&budget, {.handler = &errors});
        const auto work = [&] {
            for (int i = 0; i < 2'000; ++i) {
                const std::size_t size = i % 7 == 0 ? 30'000 : 100;
                void* const p = resource.allocate(size, 8);
                std::memset(p, 3, size);
                resource.deallocate(p, size, 8);
            }
        };
        std::thread other(work);
        work();
        other.join();
        EXPECT_EQ(resource.stats().live_blocks, 0U);
    }
    EXPECT_EQ(account.stats().live_blocks, 0U);
    EXPECT_EQ(errors.count(), 0U);
}

// ---- Upstreams that lie -------------------------------------------------------------------------------------------

/// Gives `next`, if that is set, and counts what comes back.
class repeating_upstream final : public std::pmr::memory_resource {
public:
    void* next = nullptr;
    void* last = nullptr;
    std::size_t live = 0;
    std::size_t given_back = 0;

private:
    void* do_allocate(std::size_t size, std::size_t alignment) override {
        if (next != nullptr) {
            return next;
        }
        ++live;
        last = std::pmr::new_delete_resource()->allocate(size, alignment);
        return last;
    }
    void do_deallocate(void* p, std::size_t size, std::size_t alignment) override {
        --live;
        ++given_back;
        std::pmr::new_delete_resource()->deallocate(p, size, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST(fence_overlap, the_same_block_twice_is_the_upstreams_fault) {
    for (const std::size_t size : {std::size_t{100'000}, std::size_t{100}}) {
        for (const std::size_t offset : {std::size_t{0}, page}) {
            collecting_handler errors;
            repeating_upstream upstream;
            {
                end_of_page_resource resource(&upstream, {.name = "fence", .handler = &errors});
                void* const p = resource.allocate(size, 8);
                std::memset(p, 5, size);
                upstream.next = bytes(upstream.last) + offset;
                EXPECT_THROW((void)resource.allocate(50'000, 8), std::bad_alloc);
                upstream.next = nullptr;
                ASSERT_EQ(errors.count(), 1U);
                const report& r = errors[0].facts;
                EXPECT_EQ(r.kind, error_kind::upstream_overlap);
                EXPECT_EQ(r.resource.name, "fence");
                EXPECT_EQ(r.pointer, bytes(upstream.last) + offset);
                EXPECT_EQ(r.block.address, p);
                EXPECT_EQ(r.block.size, size);
                EXPECT_EQ(bytes(p)[size - 1], 5);
                resource.deallocate(p, size, 8);
                EXPECT_EQ(upstream.given_back, 0U);
                EXPECT_EQ(resource.stats().live_blocks, 0U);
            }
            EXPECT_EQ(errors.count(), 1U);
            EXPECT_EQ(upstream.live, 0U);
        }
    }
}

}  // namespace
