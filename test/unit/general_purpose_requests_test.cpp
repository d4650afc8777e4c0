// Requests at the edges, and upstream resources that break their contract.

#include "support/general_purpose.hpp"
#include "support/odd_calls.hpp"
#include "support/sanitizers.hpp"

#include <limits>
#include <set>
#include <unordered_map>

namespace {

using namespace test_support;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_resource;
using pmr_debug::report;

template <class Policy>
struct general_purpose_requests : heap_test<Policy> {
    void expect_usable() {
        void* const p = this->heap->allocate(100, 8);
        std::memset(p, 1, 100);
        this->heap->deallocate(p, 100, 8);
        EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    }
};
TYPED_TEST_SUITE(general_purpose_requests, all_policies);

TYPED_TEST(general_purpose_requests, no_bytes_are_blocks_of_their_own_and_tracked) {
    for (const std::size_t alignment : {1U, 8U, 4096U, 65'536U}) {
        std::set<void*> seen;
        for (int i = 0; i < 100; ++i) {
            void* const p = this->heap->allocate(0, alignment);
            EXPECT_NE(p, nullptr);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
            EXPECT_TRUE(seen.insert(p).second);
        }
        EXPECT_EQ(this->heap->stats().live_blocks, 100U);
        EXPECT_EQ(this->heap->stats().live_bytes, 0U);
        for (void* const p : seen) {
            this->heap->deallocate(p, 0, alignment);
        }
    }
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    EXPECT_TRUE(this->heap->ok());
}

TYPED_TEST(general_purpose_requests, alignment_that_is_no_power_of_two) {
    for (const std::size_t alignment :
         {std::size_t{0}, std::size_t{3}, std::size_t{6}, std::size_t{24}, std::size_t{4097}, ~std::size_t{0}}) {
        this->errors.clear();
        EXPECT_THROW(static_cast<void>(allocate_odd(*this->heap, 64, alignment)), std::bad_alloc);
        if (!this->rules.checks) {
            EXPECT_EQ(this->errors.count(), 0U);
            continue;
        }
        const report r = this->only(error_kind::bad_alignment);
        expect_given(r, nullptr, 64, alignment);
        expect_trace(r.here, 1, "allocate_odd", "here");
    }
    EXPECT_EQ(this->heap->stats().failed_allocations, 6U);
    this->expect_usable();
    EXPECT_EQ(this->heap->ok(), !this->rules.checks);
}

TYPED_TEST(general_purpose_requests, sizes_that_cannot_be_are_refused_without_a_report) {
    constexpr std::size_t most = SIZE_MAX;
    struct row {
        std::size_t bytes, alignment;
    };
    std::size_t failures = 0;
    // The second is how libstdc++'s pools probe their upstream; then negative sizes, and sums that would wrap.
    for (const row& r :
         {row{most, 1}, row{most, most / 2 + 1}, row{most - 1, 8}, row{most - 15, 16}, row{most - 4096, 4096},
          row{most / 2, 1}, row{most / 2 + 1, 1}, row{most / 2 - 4096, 8}, row{static_cast<std::size_t>(-64), 8},
          row{1, most / 2 + 1}, row{1, most / 4 + 1}, row{most / 2, most / 2 + 1}}) {
        SCOPED_TRACE(std::to_string(r.bytes) + " aligned to " + std::to_string(r.alignment));
        EXPECT_THROW(static_cast<void>(allocate_odd(*this->heap, r.bytes, r.alignment)), std::bad_alloc);
        EXPECT_EQ(this->heap->stats().failed_allocations, ++failures);
    }
    this->expect_usable();
    EXPECT_TRUE(this->heap->ok());
    this->end();  // nor does the upstream complain
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_requests, any_alignment_up_to_four_megabytes) {
    for (std::size_t alignment = 1; alignment <= std::size_t{4} << 20; alignment *= 2) {
        for (const std::size_t bytes : {0U, 1U, 64U, 4096U, 8192U, 8193U, 300'000U}) {
            void* const p = this->heap->allocate(bytes, alignment);
            ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U) << bytes << " " << alignment;
            std::memset(p, 1, bytes);
            this->heap->deallocate(p, bytes, alignment);
        }
    }
    EXPECT_TRUE(this->heap->ok());
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_requests, every_size_around_every_class) {
    std::vector<std::pair<void*, std::size_t>> blocks;
    const auto fill = [](void* p, std::size_t n) { std::memset(p, static_cast<int>(n % 251), n); };
    for (std::size_t n = 0; n < 9'000; n = n < 600 ? n + 1 : n + 37) {
        void* const p = this->heap->allocate(n, 1);
        fill(p, n);
        blocks.emplace_back(p, n);
    }
    for (const auto& [p, n] : blocks) {
        ASSERT_TRUE(all_are(p, n, static_cast<unsigned char>(n % 251))) << n;
        this->heap->deallocate(p, n, 1);
    }
    EXPECT_TRUE(this->heap->ok());
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_requests, identity_upstream_and_name) {
    typename TypeParam::resource other;
    EXPECT_TRUE(this->heap->is_equal(*this->heap));
    EXPECT_FALSE(this->heap->is_equal(other));
    EXPECT_EQ(this->heap->upstream_resource(), &*this->pages);
    EXPECT_EQ(other.upstream_resource(), std::pmr::new_delete_resource());
    EXPECT_EQ(this->heap->name(), "heap");
    EXPECT_EQ(other.name(), "");
}

// ---- over any upstream ----------------------------------------------------------------------------------------------

// A mixed load whose contents are checked; ends with nothing live.
void run_load(std::pmr::memory_resource& r, std::size_t most) {
    struct block {
        unsigned char* p;
        std::size_t bytes, alignment;
        unsigned char value;
    };
    std::vector<block> live;
    std::uint64_t s = 0x9E3779B97F4A7C15U;
    const auto next = [&s] {
        s ^= s >> 12U;
        s ^= s << 25U;
        s ^= s >> 27U;
        return static_cast<std::size_t>((s * 0x2545F4914F6CDD1DU) >> 33U);
    };
    const auto free_one = [&](std::size_t i) {
        ASSERT_TRUE(all_are(live[i].p, live[i].bytes, live[i].value));
        r.deallocate(live[i].p, live[i].bytes, live[i].alignment);
        live[i] = live.back();
        live.pop_back();
    };
    for (int i = 0; i < 3'000; ++i) {
        if (live.size() > 20) {
            free_one(next() % live.size());
        }
        const std::size_t bytes = next() % (next() % 16 == 0 ? most : most / 16 + 1);
        const std::size_t alignment = std::size_t{1} << next() % 8;
        auto* const p = static_cast<unsigned char*>(r.allocate(bytes, alignment));
        ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
        const auto value = static_cast<unsigned char>(next() % 256);
        std::memset(p, value, bytes);
        live.push_back({p, bytes, alignment, value});
    }
    while (!live.empty()) {
        free_one(live.size() - 1);
    }
}

TYPED_TEST(general_purpose_requests, mixed_load_over_pages) {
    run_load(*this->heap, 40'000);
    EXPECT_EQ(this->heap->check(), 0U);
    this->end();
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_requests, mixed_load_over_new_and_delete) {
    counting_upstream backing;
    {
        typename TypeParam::resource inner(&backing, {.handler = &this->errors});
        run_load(inner, 40'000);
        EXPECT_EQ(inner.check(), 0U);
        EXPECT_EQ(inner.stats().upstream_bytes, backing.live_bytes);
    }
    EXPECT_EQ(backing.live_blocks, 0U);
    EXPECT_EQ(this->errors.count(), 0U);
}

TYPED_TEST(general_purpose_requests, mixed_load_stacked_on_another_one) {
    {
        typename TypeParam::resource above(&*this->heap, {.name = "above", .handler = &this->errors});
        run_load(above, 40'000);
        EXPECT_EQ(above.check(), 0U);
        EXPECT_GT(this->heap->stats().live_blocks, 0U);
    }
    EXPECT_EQ(this->heap->stats().live_blocks, 0U);
    EXPECT_EQ(this->heap->check(), 0U);
    this->end();
    EXPECT_EQ(this->errors.count(), 0U) << (this->errors.size() != 0 ? std::string(this->errors.back().text) : "");
}

TYPED_TEST(general_purpose_requests, small_load_over_a_static_buffer) {
    alignas(4096) static std::byte buffer[512 * 1024];
    std::pmr::monotonic_buffer_resource backing(buffer, sizeof buffer, std::pmr::null_memory_resource());
    {
        typename TypeParam::resource inner(&backing, {.handler = &this->errors});
        std::vector<void*> blocks;
        for (int i = 0; i < 500; ++i) {
            void* const p = inner.allocate(100, 8);
            ASSERT_GE(p, static_cast<void*>(buffer));
            ASSERT_LT(p, static_cast<void*>(buffer + sizeof buffer));
            std::memset(p, 1, 100);
            blocks.push_back(p);
        }
        EXPECT_THROW(static_cast<void>(inner.allocate(1'000'000, 8)), std::bad_alloc);
        for (void* const p : blocks) {
            ASSERT_TRUE(all_are(p, 100, 1));
            inner.deallocate(p, 100, 8);
        }
    }
    EXPECT_EQ(this->errors.count(), 0U);
}

// ---- upstream resources that break their contract -------------------------------------------------------------------

/// Hands out `next` for every request while `lying`, which the compiler must not see as a null pointer.
class lying_upstream : public std::pmr::memory_resource {
public:
    bool lying = false;
    void* volatile next = nullptr;
    std::size_t live = 0;
    std::vector<void*> given_back;

private:
    __attribute__((no_sanitize("undefined"))) void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        if (lying) {
            return next;
        }
        ++live;
        return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        if (lying && p == next) {
            given_back.push_back(p);
            return;
        }
        --live;
        std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

struct contract_test : ::testing::Test {
    collecting_handler errors;
    lying_upstream backing;
    std::optional<general_purpose_resource> heap{
        std::in_place, &backing, pmr_debug::general_purpose_options{.name = "heap", .handler = &errors}};
    void* small = heap->allocate(64, 8);
    void* large = heap->allocate(100'000, 8);

    void SetUp() override {
        std::memset(small, 1, 64);
        std::memset(large, 2, 100'000);
    }
    // The large block is in an upstream block of its own, behind a canary.
    [[nodiscard]] void* page_of_large() const { return bytes_at(large, 0 - std::size_t{64}); }
    // Both for a small and a large request; then nothing is lost and the resource goes on.
    void expect_refusal(error_kind kind, void* lie) {
        backing.lying = true;
        backing.next = lie;
        for (const std::size_t bytes : {std::size_t{3'000}, std::size_t{50'000}}) {
            errors.clear();
            EXPECT_THROW(static_cast<void>(heap->allocate(bytes, 8)), std::bad_alloc);
            ASSERT_EQ(errors.count(), 1U);
            ASSERT_EQ(errors.count(kind), 1U) << errors.back().text;
            const report& r = errors.back().facts;
            EXPECT_EQ(r.pointer, lie);
            EXPECT_TRUE(r.has_given);
            EXPECT_GE(r.given_size, bytes);
            EXPECT_EQ(r.given_alignment, 4096U);
            EXPECT_EQ(r.resource.name, "heap");
        }
        backing.lying = false;
        EXPECT_EQ(heap->stats().failed_allocations, 2U);
        EXPECT_EQ(heap->stats().live_blocks, 2U);
        void* const p = heap->allocate(3'000, 8);
        heap->deallocate(p, 3'000, 8);
        EXPECT_TRUE(all_are(small, 64, 1));
        EXPECT_TRUE(all_are(large, 100'000, 2));
        heap->deallocate(small, 64, 8);
        heap->deallocate(large, 100'000, 8);
        EXPECT_EQ(heap->errors()[kind], 2U);
        EXPECT_EQ(heap->errors().total(), 2U);
        heap.reset();
        EXPECT_EQ(backing.live, 0U);
    }
};
using general_purpose_upstream = contract_test;

TEST_F(general_purpose_upstream, null) {
#if TEST_SANITIZED
    GTEST_SKIP() << "a sanitizer ends the program where the null pointer is returned";
#endif
    expect_refusal(error_kind::upstream_null, nullptr);
    EXPECT_TRUE(backing.given_back.empty());
}

TEST_F(general_purpose_upstream, misaligned_memory_is_given_back) {
    alignas(4096) static std::byte somewhere[8192];
    expect_refusal(error_kind::upstream_misaligned, somewhere + 16);
    EXPECT_EQ(backing.given_back.size(), 2U);
}

TEST_F(general_purpose_upstream, the_same_block_twice) {
    expect_refusal(error_kind::upstream_overlap, page_of_large());
    EXPECT_TRUE(backing.given_back.empty());
}

TEST_F(general_purpose_upstream, memory_inside_a_block_in_use) {
    void* const inside = bytes_at(page_of_large(), 8'192);
    expect_refusal(error_kind::upstream_overlap, inside);
    EXPECT_TRUE(backing.given_back.empty());
}

TEST_F(general_purpose_upstream, memory_that_reaches_into_a_block_in_use) {
    expect_refusal(error_kind::upstream_overlap, bytes_at(page_of_large(), 0 - std::size_t{4096}));
}

TEST_F(general_purpose_upstream, overlap_names_the_block_in_use) {
    backing.lying = true;
    backing.next = page_of_large();
    EXPECT_THROW(static_cast<void>(heap->allocate(50'000, 8)), std::bad_alloc);
    ASSERT_EQ(errors.count(error_kind::upstream_overlap), 1U);
    EXPECT_EQ(errors.back().facts.block.address, large);
    EXPECT_EQ(errors.back().facts.block.size, 100'000U);
    EXPECT_EQ(errors.back().facts.block.state, pmr_debug::block_state::live);
    backing.lying = false;
    heap->deallocate(small, 64, 8);
    heap->deallocate(large, 100'000, 8);
}

/// Throws what is no bad_alloc.
class throwing_upstream : public std::pmr::memory_resource {
    void* do_allocate(std::size_t, std::size_t) override { throw 42; }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

TEST(general_purpose_upstream_throws, whatever_it_throws_the_caller_sees_bad_alloc) {
    collecting_handler errors;
    throwing_upstream backing;
    general_purpose_resource heap(&backing, {.handler = &errors});
    EXPECT_THROW(static_cast<void>(heap.allocate(64, 8)), std::bad_alloc);
    EXPECT_THROW(static_cast<void>(heap.allocate(100'000, 8)), std::bad_alloc);
    EXPECT_EQ(heap.stats().failed_allocations, 2U);
    EXPECT_TRUE(heap.ok());
}

TEST(general_purpose_upstream_throws, no_memory_at_all) {
    collecting_handler errors;
    general_purpose_resource heap(std::pmr::null_memory_resource(), {.handler = &errors});
    EXPECT_THROW(static_cast<void>(heap.allocate(0, 1)), std::bad_alloc);
    EXPECT_THROW(static_cast<void>(heap.allocate(64, 8)), std::bad_alloc);
    EXPECT_TRUE(heap.ok());
}

TEST(general_purpose_null_upstream_DeathTest, says_so_before_the_end) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    std::pmr::memory_resource* volatile nothing = nullptr;
    EXPECT_DEATH(general_purpose_resource(static_cast<std::pmr::memory_resource*>(nothing), {.name = "orphan"}),
                 "null_upstream: .*orphan.* was constructed with a null upstream");
}

}  // namespace
