// The plain case: an error is told, and ends the program.
#include <pmr_debug/pmr_debug.hpp>

int main() {
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    void* const p = heap.allocate(64);
    heap.deallocate(p, 64);
    heap.deallocate(p, 64);
}
