// For programs that load and unload something.
#include <memory_resource>

extern "C" [[gnu::noinline]] void* allocate_in_plugin(std::pmr::memory_resource* heap) {
    void* const p = heap->allocate(64);
    asm volatile("" : : : "memory");
    return p;
}
