// Lines about memory used after it was given back: 33, 34, 10, 35, and the last part of a.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>
#include <vector>

namespace catalogue {

CATALOGUE_NOINLINE static void take_a_text(std::pmr::memory_resource& memory, void** p) {
    *p = memory.allocate(200, 8);
    std::memset(*p, ' ', 200);
}

CATALOGUE_NOINLINE static void write_through_the_old_pointer(void* p) {
    write_byte(p, 5, 'x');
}

CATALOGUE_NOINLINE static void read_through_the_old_pointer(const void* p) {
    read_byte(p, 5);
}

template <class Resource>
CATALOGUE_NOINLINE void release_all(Resource& resource) {
    resource.release();
}

// ---- 33, 34: an arena of this library, and those of the standard library over memory that is watched

static void writes_after_release_of_an_arena(bool planted) {
    pmr_debug::temp_resource arena({.name = "arena"});
    void* text = nullptr;
    take_a_text(arena, &text);
    if (planted) {
        release_all(arena);
    }
    write_through_the_old_pointer(text);
    release_all(arena);
    arena.check();
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

static void writes_after_release_of_a_std_arena(bool planted) {
    writes_after_release<std::pmr::monotonic_buffer_resource>(planted);
}

static void writes_after_release_of_a_std_pool(bool planted) {
    writes_after_release<std::pmr::unsynchronized_pool_resource>(planted);
}

static void reads_after_release_of_a_std_pool(bool planted) {
    const pmr_debug::fault_handler explain_faults;
    pmr_debug::basic_end_of_page_resource<pmr_debug::policy{.dead = pmr_debug::dead_unit::trap_at_once}> memory(
        {.name = "memory"});
    std::pmr::unsynchronized_pool_resource pool(&memory);
    void* text = nullptr;
    take_a_text(pool, &text);
    if (planted) {
        release_all(pool);
    }
    read_through_the_old_pointer(text);
}

// ---- 10: nobody else knows that a part of the stack is not in use

static void writes_after_release_of_a_stack_buffer(bool planted) {
    alignas(16) std::byte buffer[1024];
    pmr_debug::temp_resource arena(buffer, sizeof buffer, {.name = "arena"});
    void* text = nullptr;
    take_a_text(arena, &text);
    if (planted) {
        release_all(arena);
    }
    write_through_the_old_pointer(text);
    release_all(arena);
    arena.check();
}

// ---- 35: the old buffer of a vector

CATALOGUE_NOINLINE static void grow(std::pmr::vector<int>& v) {
    v.resize(100);
}

CATALOGUE_NOINLINE static void write_to_the_old_element(int* element) {
    *opaque(element) = 7;
    asm volatile("" : : : "memory");
}

static void keeps_a_reference_while_a_vector_grows(bool planted) {
    pmr_debug::temp_resource<4096> arena({.name = "arena"});
    std::pmr::vector<int> numbers({1, 2, 3}, &arena);
    int* first = numbers.data();
    grow(numbers);
    write_to_the_old_element(planted ? first : numbers.data());
    arena.check();
}

// ---- a: a block whose arena forgot it

static void frees_after_release(bool planted) {
    pmr_debug::temp_resource arena({.name = "arena"});
    void* text = nullptr;
    take_a_text(arena, &text);
    if (planted) {
        release_all(arena);
    }
    arena.deallocate(text, 200, 8);
}

std::vector<bug> release_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "a",
         .name = "freed_after_release",
         .found_by = "temp",
         .run = frees_after_release,
         .findings = {{.kind = invalid_free,
                       .resource = "arena",
                       .here = "frees_after_release",
                       .allocated = "take_a_text",
                       .freed = "release_all",
                       .size = 200}}},
        {.line = "33",
         .name = "after_release_of_an_arena",
         .found_by = "temp",
         .run = writes_after_release_of_an_arena,
         .findings = {{.kind = use_after_free,
                       .resource = "arena",
                       .allocated = "take_a_text",
                       .freed = "release_all",
                       .size = 200,
                       .bad_offset = 5}}},
        {.line = "33",
         .name = "after_release_of_a_std_arena",
         .found_by = "general_purpose as the upstream",
         .run = writes_after_release_of_a_std_arena,
         .findings = {{.kind = write_after_free,
                       .resource = "memory",
                       .allocated = "take_a_text",
                       .freed = "release_all",
                       .bad_offset = 5}}},
        {.line = "34",
         .name = "write_after_release_of_a_pool",
         .found_by = "general_purpose as the upstream",
         .run = writes_after_release_of_a_std_pool,
         .findings =
             {{.kind = write_after_free, .resource = "memory", .allocated = "take_a_text", .freed = "release_all"}}},
        {.line = "34",
         .name = "read_after_release_of_a_pool",
         .found_by = "end_of_page as the upstream, fault_handler",
         .run = reads_after_release_of_a_std_pool,
         .findings = {{.kind = use_after_free,
                       .resource = "memory",
                       .here = "read_through_the_old_pointer",
                       .allocated = "take_a_text",
                       .freed = "release_all"}},
         .end = ending::faults},
        {.line = "10",
         .name = "after_release_of_a_stack_buffer",
         .found_by = "temp",
         .run = writes_after_release_of_a_stack_buffer,
         .findings = {{.kind = use_after_free,
                       .resource = "arena",
                       .allocated = "take_a_text",
                       .freed = "release_all",
                       .size = 200,
                       .bad_offset = 5}}},
        {.line = "35",
         .name = "stale_element",
         .found_by = "temp",
         .run = keeps_a_reference_while_a_vector_grows,
         .findings = {{.kind = write_after_free,
                       .resource = "arena",
                       .here = "keeps_a_reference_while_a_vector_grows",
                       .size = 3 * sizeof(int),
                       .bad_offset = 0}}},
    };
}

}  // namespace catalogue
