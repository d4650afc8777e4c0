// Lines about who dies first: 8, 9, 26, 27, 28.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>
#include <pmr_debug/testing/default_resource_guard.hpp>

#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <vector>

namespace catalogue {

namespace {

constexpr pmr_debug::policy deep_arena_policy{
    .threads = pmr_debug::threading::single_checked, .alloc_frames = 32, .free_frames = 32};

// ---- 8, 9: members in the wrong order

struct arena_dies_first {
    std::pmr::vector<int> numbers;
    pmr_debug::temp_resource<256, deep_arena_policy> memory{{.name = "arena"}};
};
struct arena_dies_last {
    pmr_debug::temp_resource<256, deep_arena_policy> memory{{.name = "arena"}};
    std::pmr::vector<int> numbers;
};
struct pool_dies_first {
    std::pmr::vector<int> numbers;
    deep_pool memory{{.name = "pool"}};
};
struct pool_dies_last {
    deep_pool memory{{.name = "pool"}};
    std::pmr::vector<int> numbers;
};

}  // namespace

// Members without a default resource in their types: `numbers` is made anew on `memory`.
template <class Document>
CATALOGUE_NOINLINE void fill_and_drop(void* storage) {
    auto* const document = ::new (opaque(storage)) Document;
    std::destroy_at(&document->numbers);
    std::construct_at(&document->numbers, std::initializer_list<int>{1, 2, 3}, &document->memory);
    opaque(document)->~Document();
    opaque(document);
}

static void declares_the_arena_last(bool planted) {
    alignas(std::max_align_t) std::byte storage[sizeof(arena_dies_first) + sizeof(arena_dies_last)];
    planted ? fill_and_drop<arena_dies_first>(storage) : fill_and_drop<arena_dies_last>(storage);
}

static void declares_the_pool_last(bool planted) {
    alignas(std::max_align_t) std::byte storage[sizeof(pool_dies_first) + sizeof(pool_dies_last)];
    planted ? fill_and_drop<pool_dies_first>(storage) : fill_and_drop<pool_dies_last>(storage);
}

// With a forwarder in between it works for every pool, and says where the block is from.
static void outlives_a_pool_behind_a_proxy(bool planted) {
    std::optional<std::pmr::unsynchronized_pool_resource> pool(std::in_place);
    std::optional<pmr_debug::immortal_proxy> proxy(std::in_place, &*pool,
                                                   pmr_debug::proxy_options{.name = "pool", .frames = 32});
    std::optional<std::pmr::vector<int>> numbers(std::in_place, std::initializer_list<int>{1, 2, 3}, proxy->resource());
    if (!planted) {
        numbers.reset();
    }
    proxy.reset();
    pool.reset();
    numbers.reset();
}

// ---- 26: the default resource

CATALOGUE_NOINLINE static void run_a_level(bool restores) {
    pmr_debug::general_purpose_resource level({.name = "level"});
    std::pmr::memory_resource* const before = std::pmr::set_default_resource(&level);
    { const std::pmr::vector<int> numbers{1, 2, 3}; }
    if (restores) {
        std::pmr::set_default_resource(before);
    }
}

static void leaves_a_local_as_the_default(bool planted) {
    pmr_debug::general_purpose_resource memory({.name = "all defaults"});
    const pmr_debug::testing::default_resource_guard guard(&memory);
    run_a_level(!planted);
}

// ---- 27: a text on a local arena

CATALOGUE_NOINLINE static void make_a_title(std::pmr::memory_resource* given, void* out) {
    pmr_debug::temp_resource<256> local({.name = "local"});
    ::new (out) std::pmr::string("a title that does not fit into the string itself", given != nullptr ? given : &local);
}

static void returns_a_text_on_a_local_arena(bool planted) {
    pmr_debug::general_purpose_resource memory({.name = "memory"});
    alignas(std::pmr::string) std::byte storage[sizeof(std::pmr::string)];
    auto* const title = reinterpret_cast<std::pmr::string*>(storage);
    make_a_title(planted ? nullptr : &memory, title);
    if (!planted) {
        title->~basic_string();
    }  // else it would call into a stack frame that is gone
}

// ---- 28: an optional arena

static void keeps_a_vector_of_a_dead_arena(bool planted) {
    std::optional<pmr_debug::temp_resource<256, deep_arena_policy>> arena;
    arena.emplace(pmr_debug::temp_options{.name = "arena"});
    std::optional<std::pmr::vector<int>> numbers(std::in_place, std::initializer_list<int>{1, 2, 3}, &*arena);
    if (!planted) {
        numbers.reset();
    }
    arena.reset();
    opaque(&arena);
    numbers.reset();
}

std::vector<bug> lifetime_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "8",
         .name = "arena_dies_first",
         .found_by = "temp",
         .run = declares_the_arena_last,
         .findings = {{.kind = live_at_destruction,
                       .resource = "arena",
                       .here = "arena_dies_first",
                       .allocated = "fill_and_drop",
                       .size = 12},
                      {.kind = destroyed_resource, .resource = "arena", .here = "fill_and_drop", .given_size = 12}},
         .calls_the_dead = true},
        {.line = "9",
         .name = "pool_dies_first",
         .found_by = "general_purpose",
         .run = declares_the_pool_last,
         .findings = {{.kind = leak, .resource = "pool", .allocated = "fill_and_drop", .size = 12, .blocks = 1},
                      {.kind = destroyed_resource,
                       .resource = "pool",
                       .here = "fill_and_drop",
                       .born = "pool_dies_first",
                       .died = "pool_dies_first",
                       .given_size = 12}},
         .calls_the_dead = true},
        {.line = "9",
         .name = "any_pool_dies_first",
         .found_by = "immortal_proxy over a std::pmr::unsynchronized_pool_resource",
         .run = outlives_a_pool_behind_a_proxy,
         .findings = {{.kind = live_at_destruction,
                       .resource = "pool",
                       .allocated = "outlives_a_pool_behind_a_proxy",
                       .size = 12},
                      {.kind = destroyed_resource,
                       .resource = "pool",
                       .here = "outlives_a_pool_behind_a_proxy",
                       .allocated = "outlives_a_pool_behind_a_proxy",
                       .born = "outlives_a_pool_behind_a_proxy",
                       .died = "outlives_a_pool_behind_a_proxy",
                       .size = 12,
                       .given_size = 12}}},
        {.line = "26",
         .name = "default_not_restored",
         .found_by = "default_resource_guard",
         .run = leaves_a_local_as_the_default,
         .findings = {{.kind = default_resource_used, .owner = "level", .here = "leaves_a_local_as_the_default"}}},
        {.line = "27",
         .name = "text_on_a_local_arena",
         .found_by = "temp",
         .run = returns_a_text_on_a_local_arena,
         .findings = {{.kind = live_at_destruction, .resource = "local", .here = "make_a_title", .size = 49}}},
        {.line = "28",
         .name = "vector_of_a_dead_arena",
         .found_by = "temp",
         .run = keeps_a_vector_of_a_dead_arena,
         .findings = {{.kind = live_at_destruction,
                       .resource = "arena",
                       .here = "keeps_a_vector_of_a_dead_arena",
                       .allocated = "keeps_a_vector_of_a_dead_arena",
                       .size = 12},
                      {.kind = destroyed_resource,
                       .resource = "arena",
                       .here = "keeps_a_vector_of_a_dead_arena",
                       .given_size = 12}},
         .calls_the_dead = true},
    };
}

}  // namespace catalogue
