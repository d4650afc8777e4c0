// Does its work, and makes an error, in a thread that its constructors wait for: the loader's lock is held meanwhile.
#include <memory_resource>
#include <thread>

namespace {

void work() {
    std::pmr::memory_resource* const heap = std::pmr::get_default_resource();
    void* const p = heap->allocate(100);
    heap->deallocate(p, 50);
    asm volatile("");  // no tail call: this function is to be in the trace
}

[[maybe_unused]] const int loaded = (std::thread(work).join(), 0);

}  // namespace
