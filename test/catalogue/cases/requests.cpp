// Lines about what is asked for, and about broken resources underneath: 22, 31, 23, 24, b, 25, 41, c.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/is_equal_audit.hpp>

#include <array>
#include <cstdint>
#include <memory_resource>
#include <type_traits>
#include <utility>
#include <vector>

namespace catalogue {

// ---- 22, 31

CATALOGUE_ODD static void asks_for_alignment_three(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    volatile std::size_t alignment = planted ? 3 : 4;
    void* const p = pool.allocate(64, alignment);
    pool.deallocate(p, 64, alignment);
}

static void stands_on_nothing(bool planted) {
    std::pmr::memory_resource* const upstream = opaque(planted ? nullptr : std::pmr::new_delete_resource());
    pmr_debug::tracking_resource scope(upstream, {.name = "scope"});
    scope.deallocate(scope.allocate(8, 8), 8, 8);
}

// ---- 23, 24, b: an upstream that errs

namespace {

/// Hands out pieces of one buffer; how, is up to the mistake.
class faulty_resource final : public std::pmr::memory_resource {
public:
    enum class mistake { none, same_block, misaligned, null, zero_size_shared };

    explicit faulty_resource(mistake m) : mistake_(m) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t) override {
        if (mistake_ == mistake::null) {
            return null_;
        }
        std::byte* const p = buffer_.data() + used_;
        const bool stays = mistake_ == mistake::same_block || (mistake_ == mistake::zero_size_shared && bytes == 0);
        used_ += stays ? 0 : (bytes / 64 + 1) * 64;
        return p + (mistake_ == mistake::misaligned ? 4 : 0);
    }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    mistake mistake_;
    void* volatile null_ = nullptr;
    std::size_t used_ = 0;
    alignas(64) std::array<std::byte, 1024> buffer_{};
};

using mistake = faulty_resource::mistake;

}  // namespace

static void takes_two_blocks_of_the_upstream(bool planted) {
    faulty_resource upstream(planted ? mistake::same_block : mistake::none);
    pmr_debug::tracking_resource scope(&upstream, {.name = "scope"});
    void* const one = scope.allocate(32, 8);
    if (!refused([&] { scope.deallocate(scope.allocate(32, 8), 32, 8); }) && planted) {
        return;
    }
    scope.deallocate(one, 32, 8);
}

static void takes_an_aligned_block_of_the_upstream(bool planted) {
    faulty_resource upstream(planted ? mistake::misaligned : mistake::none);
    pmr_debug::tracking_resource scope(&upstream, {.name = "scope"});
    scope.deallocate(scope.allocate(64, 16), 64, 16);
}

static void believes_in_the_upstreams_block(bool planted) {
    faulty_resource upstream(planted ? mistake::null : mistake::none);
    pmr_debug::tracking_resource scope(&upstream, {.name = "scope"});
    scope.deallocate(scope.allocate(64, 8), 64, 8);
}

// ---- 25: is_equal

namespace {

/// A pool of its own that calls every other pool its equal.
class agreeable_pool final : public std::pmr::memory_resource {
public:
    agreeable_pool(std::pmr::memory_resource& memory, bool agrees) : memory_(memory), agrees_(agrees) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override { return memory_.allocate(bytes, alignment); }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        memory_.deallocate(p, bytes, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override { return agrees_ || this == &other; }

    std::pmr::memory_resource& memory_;
    bool agrees_;
};

/// A resource of the user's own that somebody copies: the copy believes to own the buffer, too.
class owning_arena final : public std::pmr::memory_resource {
public:
    static constexpr std::size_t size = 256;

    CATALOGUE_NOINLINE explicit owning_arena(std::pmr::memory_resource& upstream)
        : upstream_(&upstream), buffer_(static_cast<std::byte*>(upstream.allocate(size, 16))) {}
    owning_arena(const owning_arena&) = default;
    owning_arena& operator=(const owning_arena&) = default;
    CATALOGUE_NOINLINE ~owning_arena() override { upstream_->deallocate(buffer_, size, 16); }

private:
    void* do_allocate(std::size_t bytes, std::size_t) override {
        if (used_ + bytes > size) {
            throw std::bad_alloc();
        }
        return buffer_ + std::exchange(used_, used_ + (bytes + 15) / 16 * 16);
    }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

    std::pmr::memory_resource* upstream_;
    std::byte* buffer_;
    std::size_t used_ = 0;
};

// Of this library's own resources none can be copied or moved, so the mistake does not compile.
template <class Resource>
constexpr bool stays_where_it_is = !std::is_copy_constructible_v<Resource> && !std::is_copy_assignable_v<Resource> &&
                                   !std::is_move_constructible_v<Resource> && !std::is_move_assignable_v<Resource>;
static_assert(stays_where_it_is<pmr_debug::page_resource>);
static_assert(stays_where_it_is<pmr_debug::general_purpose_resource>);
static_assert(stays_where_it_is<pmr_debug::tracking_resource>);
static_assert(stays_where_it_is<pmr_debug::canary_resource>);
static_assert(stays_where_it_is<pmr_debug::end_of_page_resource>);
static_assert(stays_where_it_is<pmr_debug::temp_resource<>>);
static_assert(stays_where_it_is<pmr_debug::temp_resource<64>>);
static_assert(stays_where_it_is<pmr_debug::limit_resource>);
static_assert(stays_where_it_is<pmr_debug::failing_resource>);
static_assert(stays_where_it_is<pmr_debug::logging_resource>);

}  // namespace

CATALOGUE_NOINLINE static void steal_by_move_assignment(std::pmr::vector<int>& to, std::pmr::vector<int>& from) {
    to = std::move(from);
}

static void moves_across_pools_that_claim_to_be_equal(bool planted) {
    deep_pool memory_a({.name = "memory of a"});
    deep_pool memory_b({.name = "memory of b"});
    agreeable_pool a(memory_a, planted);
    agreeable_pool b(memory_b, planted);
    std::pmr::vector<int> in_a(&a);
    std::pmr::vector<int> in_b({1, 2, 3}, &b);
    steal_by_move_assignment(in_a, in_b);
}

template <bool Agrees>
struct audited_pool final : std::pmr::memory_resource {
    explicit audited_pool(std::pmr::memory_resource* memory) : pool(*memory, Agrees) {}

    agreeable_pool pool;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override { return pool.allocate(bytes, alignment); }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        pool.deallocate(p, bytes, alignment);
    }
    bool do_is_equal(const memory_resource& other) const noexcept override {
        return this == &other || (Agrees && dynamic_cast<const audited_pool*>(&other) != nullptr);
    }
};

static void calls_pools_equal_that_are_not(bool planted) {
    const pmr_debug::testing::is_equal_findings found = planted
                                                            ? pmr_debug::testing::audit_is_equal<audited_pool<true>>()
                                                            : pmr_debug::testing::audit_is_equal<audited_pool<false>>();
    if (!found.separate) {
        note("two resources are equal, but neither can free what the other allocated\n");
    }
}

// ---- 41: copies

static void copies_a_resource(bool planted) {
    pmr_debug::tracking_resource heap(std::pmr::new_delete_resource(), {.name = "heap"});
    owning_arena arena(heap);
    if (planted) {
        const owning_arena copy(arena);
    }
}

// ---- c: sizes at both ends

CATALOGUE_ODD static void asks_for_sizes_that_wrap_around(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    pmr_debug::tracking_resource scope(&pool, {.name = "scope"});
    // One byte less, one page less, half: what n + header, or n rounded up, turns into something small.
    std::size_t refusals = 0;
    constexpr std::array<std::size_t, 6> sizes{SIZE_MAX,        SIZE_MAX - 1,     SIZE_MAX - 15,
                                               SIZE_MAX - 4095, SIZE_MAX / 2 + 1, SIZE_MAX / 2};
    for (const std::size_t wanted : sizes) {
        volatile std::size_t bytes = planted ? wanted : 1;
        refusals += refused([&] { scope.deallocate(scope.allocate(bytes, 16), bytes, 16); }) ? 1 : 0;
    }
    if (refusals == sizes.size()) {
        throw std::bad_alloc();
    }
}

static void takes_two_blocks_of_no_bytes(bool planted) {
    faulty_resource upstream(planted ? mistake::zero_size_shared : mistake::none);
    pmr_debug::tracking_resource scope(&upstream, {.name = "scope"});
    void* const one = scope.allocate(0, 8);
    if (!refused([&] { scope.deallocate(scope.allocate(0, 8), 0, 8); }) && planted) {
        return;
    }
    scope.deallocate(one, 0, 8);
}

// ---- c: a circle

static void makes_a_resource_its_own_upstream(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    pmr_debug::immortal_proxy a = pmr_debug::make_proxy(&pool, {.name = "a"});
    pmr_debug::tracking_resource b(a.resource(), {.name = "b"});
    std::pmr::memory_resource* const below = planted ? static_cast<std::pmr::memory_resource*>(&b) : &pool;
    a.retarget(below);  // b asks a, and a would ask b
    b.deallocate(b.allocate(8, 8), 8, 8);
}

std::vector<bug> request_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "22",
         .name = "alignment_three",
         .found_by = "general_purpose",
         .run = asks_for_alignment_three,
         .findings = {{.kind = bad_alignment,
                       .resource = "pool",
                       .here = "asks_for_alignment_three",
                       .given_size = 64,
                       .given_alignment = 3}},
         .end = ending::throws},
        {.line = "31",
         .name = "null_upstream",
         .found_by = "every constructor",
         .run = stands_on_nothing,
         .findings = {{.kind = null_upstream, .here = "stands_on_nothing", .text = "\"scope\""}},
         .end = ending::aborts},
        {.line = "23",
         .name = "same_block_twice",
         .found_by = "tracking",
         .run = takes_two_blocks_of_the_upstream,
         .findings = {{.kind = upstream_overlap,
                       .resource = "scope",
                       .here = "takes_two_blocks_of_the_upstream",
                       .allocated = "takes_two_blocks_of_the_upstream",
                       .size = 32,
                       .given_size = 32}}},
        {.line = "24",
         .name = "misaligned_block",
         .found_by = "tracking",
         .run = takes_an_aligned_block_of_the_upstream,
         .findings = {{.kind = upstream_misaligned,
                       .resource = "scope",
                       .here = "takes_an_aligned_block_of_the_upstream",
                       .given_size = 64,
                       .given_alignment = 16}},
         .end = ending::throws},
        {.line = "b",
         .name = "null_block",
         .found_by = "tracking",
         .run = believes_in_the_upstreams_block,
         .findings = {{.kind = upstream_null,
                       .resource = "scope",
                       .here = "believes_in_the_upstreams_block",
                       .given_size = 64}},
         .end = ending::throws},
        {.line = "25",
         .name = "agreeable_pools",
         .found_by = "general_purpose as the upstreams",
         .run = moves_across_pools_that_claim_to_be_equal,
         .findings = {{.kind = wrong_resource,
                       .resource = "memory of a",
                       .owner = "memory of b",
                       .here = "moves_across_pools_that_claim_to_be_equal",
                       .allocated = "moves_across_pools_that_claim_to_be_equal",
                       .size = 3 * sizeof(int)},
                      {.kind = leak, .resource = "memory of b", .size = 3 * sizeof(int), .blocks = 1}}},
        {.line = "25",
         .name = "equality_audited",
         .found_by = "audit_is_equal",
         .run = calls_pools_equal_that_are_not,
         .notes = "two resources are equal"},
        {.line = "41",
         .name = "copied_resource",
         .found_by = "tracking as the upstream",
         .run = copies_a_resource,
         .findings = {{.kind = double_free,
                       .resource = "heap",
                       .here = "owning_arena::~owning_arena",
                       .allocated = "owning_arena::owning_arena",
                       .freed = "owning_arena::~owning_arena",
                       .size = owning_arena::size}}},
        {.line = "c",
         .name = "size_wraps_around",
         .found_by = "general_purpose, tracking",
         .run = asks_for_sizes_that_wrap_around,
         .findings = {},
         .end = ending::throws},
        {.line = "c",
         .name = "zero_sizes_at_one_address",
         .found_by = "tracking",
         .run = takes_two_blocks_of_no_bytes,
         .findings = {{.kind = upstream_overlap,
                       .resource = "scope",
                       .here = "takes_two_blocks_of_no_bytes",
                       .allocated = "takes_two_blocks_of_no_bytes",
                       .size = 0,
                       .given_size = 0}}},
        {.line = "c",
         .name = "chain_in_a_circle",
         .found_by = "immortal_proxy",
         .run = makes_a_resource_its_own_upstream,
         .findings = {{.kind = cycle, .resource = "a", .here = "makes_a_resource_its_own_upstream"}}},
    };
}

}  // namespace catalogue
