// Lines about memory given back all at once: 16, 17, 40, 19, 32, 20, 29.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <memory>
#include <memory_resource>
#include <string>
#include <thread>
#include <vector>

namespace catalogue {

// ---- 16: too small a buffer

CATALOGUE_NOINLINE static void write_a_line(std::pmr::string& line, std::size_t length) {
    line.assign(length, 'x');
}

static void overflows_a_small_buffer(bool planted) {
    pmr_debug::temp_resource<64> arena({.name = "arena"});
    std::pmr::string line(&arena);
    write_a_line(line, planted ? 80 : 40);
}

// ---- 17: a loop that only grows

static void assigns_in_a_loop_on_one_arena(bool planted) {
    pmr_debug::temp_resource arena({.name = "frame"});
    for (std::size_t i = 1; i <= 50; ++i) {
        std::pmr::vector<int> numbers(i * 10, &arena);
        if (!planted) {
            break;
        }
    }
    const pmr_debug::temp_advice advice = arena.advice();
    if (advice.dead_bytes > 4096) {
        arena.write_advice([](std::string_view text, void*) noexcept { note(text); }, nullptr);
    }
    arena.release();
}

// ---- 40: one buffer, two arenas

static void puts_two_arenas_on_one_buffer(bool planted) {
    alignas(16) std::byte buffers[2][512];
    pmr_debug::temp_resource one(buffers[0], sizeof buffers[0], {.name = "one"});
    pmr_debug::temp_resource two(buffers[planted ? 0 : 1], sizeof buffers[1], {.name = "two"});
    one.deallocate(one.allocate(16, 8), 16, 8);
    two.deallocate(two.allocate(16, 8), 16, 8);
}

// ---- 19, 32: objects that own memory of the heap

namespace {

struct player {
    std::unique_ptr<int> score = std::make_unique<int>(0);  // nobody deletes it if no destructor runs
};

// Keeps what the planted programs lose reachable, as a leak checker would end the test otherwise.
std::vector<int*>& lost() {
    static auto* const all = new std::vector<int*>;  // lives on, as the leak checker looks at the very end
    return *all;
}

}  // namespace

CATALOGUE_NOINLINE static player* make_a_player(std::pmr::polymorphic_allocator<> memory) {
    return memory.new_object<player>();
}

static void winks_out_an_object(bool planted) {
    pmr_debug::temp_resource<1024> arena({.name = "level", .audit_winked_out = true});
    player* const p = make_a_player(&arena);
    if (planted) {
        lost().push_back(p->score.get());
    } else {
        std::pmr::polymorphic_allocator<>(&arena).delete_object(p);
    }
    arena.release();
}

CATALOGUE_NOINLINE static std::pmr::vector<player>* make_players(std::pmr::polymorphic_allocator<> memory) {
    auto* const players = memory.new_object<std::pmr::vector<player>>();
    players->resize(3);
    return players;
}

static void winks_out_a_container(bool planted) {
    pmr_debug::temp_resource<1024> arena({.name = "level", .audit_winked_out = true});
    std::pmr::vector<player>* const players = make_players(&arena);
    if (planted) {
        for (player& p : *players) {
            lost().push_back(p.score.get());
        }
    } else {
        std::pmr::polymorphic_allocator<>(&arena).delete_object(players);
    }
    arena.release();
}

// ---- 20: the pool gives everything back at its end, so nobody misses the block

CATALOGUE_NOINLINE static void* take_an_entry(std::pmr::memory_resource& memory) {
    return memory.allocate(72, 8);
}

static void loses_a_block_of_a_pool(bool planted) {
    std::pmr::unsynchronized_pool_resource pool;
    pmr_debug::tracking_resource cache(&pool, {.name = "cache"});
    void* const lost_entry = take_an_entry(cache);
    void* const kept = take_an_entry(cache);
    cache.deallocate(kept, 72, 8);
    if (!planted) {
        cache.deallocate(lost_entry, 72, 8);
    }
}

// ---- 29: another thread's arena

CATALOGUE_NOINLINE static void take_from_the_other_threads_arena(std::pmr::memory_resource& arena) {
    opaque(arena.allocate(32, 8));
}

static void lends_an_arena_to_another_thread(bool planted) {
    pmr_debug::temp_resource<1024> arena({.name = "arena"});
    pmr_debug::temp_mark here(arena);
    opaque(take_an_entry(arena));
    if (planted) {
        std::thread(take_from_the_other_threads_arena, std::ref(static_cast<std::pmr::memory_resource&>(arena))).join();
    } else {
        take_from_the_other_threads_arena(arena);
    }
    here.rewind();
}

std::vector<bug> arena_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "16",
         .name = "buffer_too_small",
         .found_by = "temp",
         .run = overflows_a_small_buffer,
         .findings = {{.kind = arena_overflow,
                       .resource = "arena",
                       .here = "write_a_line",
                       .given_size = 81,
                       .text = "a buffer of 81 bytes would have held"}}},
        {.line = "17",
         .name = "loop_on_one_arena",
         .found_by = "temp: advice()",
         .run = assigns_in_a_loop_on_one_arena,
         .notes = "dead: rewind or release more often"},
        {.line = "40",
         .name = "two_arenas_on_one_buffer",
         .found_by = "temp",
         .run = puts_two_arenas_on_one_buffer,
         .findings =
             {{.kind = upstream_overlap, .resource = "two", .owner = "one", .here = "puts_two_arenas_on_one_buffer"}}},
        {.line = "19",
         .name = "winked_out_object",
         .found_by = "temp: audit_winked_out",
         .run = winks_out_an_object,
         .findings = {{.kind = live_at_destruction,
                       .resource = "level",
                       .here = "winks_out_an_object",
                       .allocated = "make_a_player",
                       .size = sizeof(player)}}},
        {.line = "32",
         .name = "winked_out_container",
         .found_by = "temp: audit_winked_out",
         .run = winks_out_a_container,
         .findings =
             {{.kind = live_at_destruction, .resource = "level", .here = "winks_out_a_container", .blocks = 2}}},
        {.line = "20",
         .name = "leak_in_a_pool",
         .found_by = "tracking over an unsynchronized_pool_resource",
         .run = loses_a_block_of_a_pool,
         .findings = {{.kind = leak, .resource = "cache", .allocated = "take_an_entry", .size = 72, .blocks = 1}}},
        {.line = "29",
         .name = "arena_of_another_thread",
         .found_by = "temp",
         .run = lends_an_arena_to_another_thread,
         .findings = {{.kind = foreign_thread,
                       .resource = "arena",
                       .here = "take_from_the_other_threads_arena",
                       .other = "lends_an_arena_to_another_thread"}}},
    };
}

}  // namespace catalogue
