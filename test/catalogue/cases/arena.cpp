// Lines about memory given back all at once: 16, 17, 40, 19, 32, 20, 29, d.

#include "catalogue.hpp"
#include "planting.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>

namespace catalogue {

// ---- 20: the pool gives everything back at its end, so nobody misses the block

CATALOGUE_NOINLINE static void* take_an_entry(std::pmr::memory_resource& memory) {
    return memory.allocate(72, 8);
}

static void loses_a_block_of_a_pool(bool planted) {
    std::pmr::unsynchronized_pool_resource pool;
    pmr_debug::tracking_resource cache(&pool, {.name = "cache"});
    void* const lost = take_an_entry(cache);
    void* const kept = take_an_entry(cache);
    cache.deallocate(kept, 72, 8);
    if (!planted) {
        cache.deallocate(lost, 72, 8);
    }
}

std::vector<bug> arena_bugs() {
    using enum pmr_debug::error_kind;
    return {
        {.line = "20",
         .name = "leak_in_a_pool",
         .found_by = "tracking over an unsynchronized_pool_resource",
         .run = loses_a_block_of_a_pool,
         .findings = {{.kind = leak, .resource = "cache", .allocated = "take_an_entry", .size = 72, .blocks = 1}}},
    };
}

}  // namespace catalogue
