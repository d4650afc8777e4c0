/// \file
/// For every day: tracking on a general-purpose allocator on pages. Finds wrong frees of every kind, overruns at the
/// free, writes after free, leaks by call path; and says who holds how much.

#include "chain_example.hpp"

static void forget_a_block(std::pmr::memory_resource& memory) {
    std::pmr::polymorphic_allocator<> allocator(&memory);
    *allocator.new_object<int>() = 7;
}

int main() {
    const chains::report_and_go_on reports;
    pmr_debug::page_resource pages({.name = "pages"});
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    pmr_debug::tracking_resource index(&heap, {.name = "index"});

    forget_a_block(index);
    chains::show(index);
}
