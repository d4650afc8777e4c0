// A plug-in that uses the library in the thread that calls it, faults told included, and takes nothing down in its end.
#include <pmr_debug/fault_handler.hpp>
#include <pmr_debug/pmr_debug.hpp>

#include <new>
#include <vector>

extern "C" [[gnu::visibility("default")]] void work() {
    // Never destroyed, as what a plug-in forgets.
    alignas(pmr_debug::fault_handler) static unsigned char storage[sizeof(pmr_debug::fault_handler)];
    static bool installed = false;
    if (!installed) {
        ::new (storage) pmr_debug::fault_handler;
        installed = true;
    }
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "plug-in"});
    std::pmr::vector<int> v(1000, &heap);
}
