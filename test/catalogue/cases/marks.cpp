// Line d: the discipline of a stack.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>

namespace catalogue {

CATALOGUE_NOINLINE static void* take_the_older(std::pmr::memory_resource& arena) {
    return arena.allocate(24, 8);
}

static void frees_the_older_block_first(bool planted) {
    pmr_debug::temp_resource<1024> arena({.name = "stack", .lifo = true});
    void* const older = take_the_older(arena);
    void* const younger = arena.allocate(40, 8);
    if (planted) {
        arena.deallocate(older, 24, 8);
        arena.deallocate(younger, 40, 8);
    } else {
        arena.deallocate(younger, 40, 8);
        arena.deallocate(older, 24, 8);
    }
}

static void rewinds_to_another_arenas_mark(bool planted) {
    pmr_debug::temp_resource<256> one({.name = "one"});
    pmr_debug::temp_resource<256> two({.name = "two"});
    pmr_debug::temp_mark here(one);
    if (planted) {
        two.rewind(here);
    } else {
        one.rewind(here);
    }
}

static void rewinds_twice(bool planted) {
    pmr_debug::temp_resource<256> arena({.name = "arena"});
    pmr_debug::temp_mark here(arena);
    here.rewind();
    if (planted) {
        here.rewind();
    }
}

static void rewinds_the_older_mark_first(bool planted) {
    pmr_debug::temp_resource<256> arena({.name = "arena"});
    pmr_debug::temp_mark older(arena);
    pmr_debug::temp_mark younger(arena);
    if (planted) {
        older.rewind();
    }
    younger.rewind();
    older.rewind();
}

static void gives_an_under_aligned_buffer(bool planted) {
    alignas(64) std::byte buffer[512];
    pmr_debug::temp_resource arena(buffer + (planted ? 4 : 0), 256, {.name = "arena", .buffer_alignment = 64});
    arena.deallocate(arena.allocate(8, 8), 8, 8);
}

std::vector<bug> mark_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "d",
         .name = "freed_out_of_order",
         .found_by = "temp: lifo",
         .run = frees_the_older_block_first,
         .findings = {{.kind = out_of_order_rewind,
                       .resource = "stack",
                       .here = "frees_the_older_block_first",
                       .allocated = "take_the_older",
                       .size = 24}}},
        {.line = "d",
         .name = "another_arenas_mark",
         .found_by = "temp",
         .run = rewinds_to_another_arenas_mark,
         .findings = {{.kind = out_of_order_rewind, .resource = "two", .here = "rewinds_to_another_arenas_mark"}}},
        {.line = "d",
         .name = "rewound_twice",
         .found_by = "temp",
         .run = rewinds_twice,
         .findings = {{.kind = out_of_order_rewind, .resource = "arena", .here = "rewinds_twice"}}},
        {.line = "d",
         .name = "older_mark_first",
         .found_by = "temp",
         .run = rewinds_the_older_mark_first,
         .findings = {{.kind = out_of_order_rewind, .resource = "arena", .here = "rewinds_the_older_mark_first"}}},
        {.line = "d",
         .name = "under_aligned_buffer",
         .found_by = "temp",
         .run = gives_an_under_aligned_buffer,
         .findings = {{.kind = bad_alignment, .resource = "arena", .here = "gives_an_under_aligned_buffer"}}},
    };
}

}  // namespace catalogue
