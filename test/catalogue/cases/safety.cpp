// Lines about memory safety in pooled memory, threads, exceptions: 11, 12, 13, 30, e.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>
#include <thread>

namespace catalogue {

CATALOGUE_NOINLINE static void* take_a_record(std::pmr::memory_resource& pool) {
    return pool.allocate(40, 8);
}

CATALOGUE_NOINLINE static void drop_the_record(std::pmr::memory_resource& pool, void* p) {
    pool.deallocate(p, 40, 8);
}

// ---- 11: use after free

static void writes_to_a_freed_record(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    void* const neighbour = take_a_record(pool);
    void* const p = take_a_record(pool);
    if (!planted) {
        write_byte(p, 8, 1);
    }
    drop_the_record(pool, p);
    if (planted) {
        write_byte(p, 8, 1);
    }
    pool.check();
    drop_the_record(pool, neighbour);
}

static void reads_a_freed_record(bool planted) {
    const pmr_debug::fault_handler explain_faults;
    pmr_debug::basic_end_of_page_resource<pmr_debug::policy{.dead = pmr_debug::dead_unit::trap_at_once}> pool(
        {.name = "pool"});
    void* const p = take_a_record(pool);
    if (!planted) {
        read_byte(p, 8);
    }
    drop_the_record(pool, p);
    if (planted) {
        read_byte(p, 8);
    }
}

// ---- 12, 13: off by one

static void writes_one_byte_past_an_arena_block(bool planted) {
    std::pmr::monotonic_buffer_resource buffer;
    pmr_debug::canary_resource arena(&buffer, {.name = "arena"});
    void* const p = take_a_record(arena);
    void* const neighbour = take_a_record(arena);
    write_byte(p, planted ? 40 : 39, 0);
    drop_the_record(arena, neighbour);
    drop_the_record(arena, p);
}

CATALOGUE_NOINLINE static void write_the_terminator(void* p, std::size_t offset) {
    write_byte(p, offset, 0);
}

static void steps_off_the_end_of_a_block(bool planted) {
    const pmr_debug::fault_handler explain_faults;
    pmr_debug::end_of_page_resource fence({.name = "fence"});
    void* const p = take_a_record(fence);
    write_the_terminator(p, planted ? 40 : 39);
    drop_the_record(fence, p);
}

static void writes_one_byte_past_a_pool_block(bool planted) {
    pmr_debug::general_purpose_resource pool({.name = "pool"});
    void* const p = take_a_record(pool);
    write_byte(p, planted ? 40 : 39, 0);
    drop_the_record(pool, p);
}

// ---- 30: two threads

CATALOGUE_NOINLINE static void use_from_the_second_thread(std::pmr::memory_resource& pool) {
    drop_the_record(pool, take_a_record(pool));
}

static void shares_an_unsynchronised_pool(bool planted) {
    constexpr pmr_debug::policy one_thread{.threads = pmr_debug::threading::single_checked};
    pmr_debug::basic_general_purpose_resource<one_thread> pool({.name = "pool"});
    drop_the_record(pool, take_a_record(pool));
    if (planted) {
        std::thread(use_from_the_second_thread, std::ref(static_cast<std::pmr::memory_resource&>(pool))).join();
    } else {
        use_from_the_second_thread(pool);
    }
}

std::vector<bug> safety_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "11",
         .name = "write_after_free",
         .found_by = "general_purpose",
         .run = writes_to_a_freed_record,
         .findings = {{.kind = write_after_free,
                       .resource = "pool",
                       .allocated = "take_a_record",
                       .freed = "drop_the_record",
                       .size = 40,
                       .bad_offset = 8}}},
        {.line = "11",
         .name = "read_after_free",
         .found_by = "end_of_page, fault_handler",
         .run = reads_a_freed_record,
         .findings = {{.kind = use_after_free,
                       .resource = "pool",
                       .here = "reads_a_freed_record",
                       .allocated = "take_a_record",
                       .freed = "drop_the_record",
                       .size = 40,
                       .alignment = 8,
                       .offset = 8,
                       .text = "was read"}},
         .end = ending::faults},
        {.line = "12",
         .name = "one_past_an_arena_block",
         .found_by = "canary over a monotonic_buffer_resource",
         .run = writes_one_byte_past_an_arena_block,
         .findings = {{.kind = overrun,
                       .resource = "arena",
                       .here = "drop_the_record",
                       .allocated = "take_a_record",
                       .size = 40,
                       .bad_offset = 40}}},
        {.line = "13",
         .name = "off_the_end_of_a_block",
         .found_by = "end_of_page, fault_handler",
         .run = steps_off_the_end_of_a_block,
         .findings = {{.kind = overrun,
                       .resource = "fence",
                       .here = "write_the_terminator",
                       .allocated = "take_a_record",
                       .size = 40,
                       .alignment = 8,
                       .offset = 40,
                       .text = "was written, 0 bytes past its end"}},
         .end = ending::faults},
        {.line = "13",
         .name = "one_past_a_pool_block",
         .found_by = "general_purpose",
         .run = writes_one_byte_past_a_pool_block,
         .findings = {{.kind = overrun,
                       .resource = "pool",
                       .here = "drop_the_record",
                       .allocated = "take_a_record",
                       .size = 40,
                       .bad_offset = 40}}},
        {.line = "30",
         .name = "pool_in_two_threads",
         .found_by = "general_purpose, single_checked",
         .run = shares_an_unsynchronised_pool,
         .findings = {{.kind = foreign_thread,
                       .resource = "pool",
                       .here = "use_from_the_second_thread",
                       .other = "shares_an_unsynchronised_pool"},
                      {.kind = foreign_thread, .resource = "pool", .here = "use_from_the_second_thread"}}},
    };
}

}  // namespace catalogue
