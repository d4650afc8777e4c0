// A plug-in that was linked with a copy of the library of its own.

#include <pmr_debug/pmr_debug.hpp>

#include <memory_resource>

namespace {

pmr_debug::page_resource pages;
pmr_debug::general_purpose_resource heap(&pages, {.name = "plug-in's heap"});
pmr_debug::tracking_resource tracked({.name = "plug-in's tracking"});

}  // namespace

extern "C" std::pmr::memory_resource* plugin_memory(bool tracking) {
    return tracking ? static_cast<std::pmr::memory_resource*>(&tracked) : &heap;
}

extern "C" __attribute__((noinline)) void* plugin_allocate(std::size_t bytes) {
    void* const p = heap.allocate(bytes);
    asm volatile("" : : "r"(p) : "memory");
    return p;
}
