/// \file
/// Around an allocator of somebody else's, here a pool of the standard library: canaries above see what its users do,
/// tracking below sees what it does itself.

#include "chain_example.hpp"

#include <cstring>

__attribute__((noinline)) static void copy_a_name(char* to, std::size_t bytes, const char* name) {
    std::memset(to, 0, bytes);
    std::strcpy(to, name);  // the terminator has no room
}

int main() {
    const chains::report_and_go_on reports;
    pmr_debug::tracking_resource below({.name = "below the pool"});
    std::pmr::unsynchronized_pool_resource pool(&below);
    pmr_debug::canary_resource above(&pool, {.name = "above the pool"});

    char* volatile name = static_cast<char*>(above.allocate(5, 1));
    copy_a_name(name, 5, "Grace");
    above.deallocate(name, 5, 1);

    chains::show(above);
    chains::show(below);
}
