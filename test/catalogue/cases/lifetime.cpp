// Lines about who dies first: 8, 9, 26, 27, 28, 33, 34, 10, 35.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>
#include <string>
#include <vector>

namespace catalogue {

// ---- 9: members in the wrong order

namespace {

struct pool_dies_first {
    std::pmr::vector<int> numbers;
    deep_pool pool{{.name = "pool"}};
};
struct vector_dies_first {
    deep_pool pool{{.name = "pool"}};
    std::pmr::vector<int> numbers;
};

}  // namespace

template <class Document>
CATALOGUE_NOINLINE void fill_and_drop() {
    // Placed by hand: what a member function may assume of a dying object is none of this line's business.
    alignas(Document) std::byte storage[sizeof(Document)];
    auto* const document = ::new (opaque(static_cast<void*>(storage))) Document;
    std::destroy_at(&document->numbers);
    std::construct_at(&document->numbers, std::initializer_list<int>{1, 2, 3}, &document->pool);
    opaque(document)->~Document();
    opaque(document);
}

static void declares_the_pool_last(bool planted) {
    planted ? fill_and_drop<pool_dies_first>() : fill_and_drop<vector_dies_first>();
}

// ---- 33, 34: after release()

CATALOGUE_NOINLINE static void take_a_text(std::pmr::memory_resource& memory, void** p) {
    *p = memory.allocate(200, 8);
    std::memset(*p, ' ', 200);
}

CATALOGUE_NOINLINE static void write_through_the_old_pointer(void* p) {
    write_byte(p, 5, 'x');
}

template <class Resource>
CATALOGUE_NOINLINE void release_all(Resource& resource) {
    resource.release();
}

template <class Resource>
void writes_after_release(bool planted) {
    pmr_debug::general_purpose_resource memory({.name = "memory"});
    Resource resource(&memory);
    void* text = nullptr;
    take_a_text(resource, &text);
    if (planted) {
        release_all(resource);
    }
    write_through_the_old_pointer(text);
    release_all(resource);
    memory.check();
}

static void writes_after_release_of_an_arena(bool planted) {
    writes_after_release<std::pmr::monotonic_buffer_resource>(planted);
}

static void writes_after_release_of_a_pool(bool planted) {
    writes_after_release<std::pmr::unsynchronized_pool_resource>(planted);
}

std::vector<bug> lifetime_bugs() {
    using enum pmr_debug::error_kind;
    return {
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
                       .given_size = 12}}},
        {.line = "33",
         .name = "after_release_of_an_arena",
         .found_by = "general_purpose as the upstream",
         .run = writes_after_release_of_an_arena,
         .findings = {{.kind = write_after_free,
                       .resource = "memory",
                       .allocated = "take_a_text",
                       .freed = "release_all",
                       .bad_offset = 5}}},
        {.line = "34",
         .name = "after_release_of_a_pool",
         .found_by = "general_purpose as the upstream",
         .run = writes_after_release_of_a_pool,
         .findings =
             {{.kind = write_after_free, .resource = "memory", .allocated = "take_a_text", .freed = "release_all"}}},
    };
}

}  // namespace catalogue
