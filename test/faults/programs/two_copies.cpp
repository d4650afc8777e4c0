// The program and its plug-in have a copy of the library each. Arguments: the plug-in; what happens: general, tracking,
// canary, fence, temp, page (a resource of the program is given a block of the plug-in's), late (a freed block of the
// plug-in's is written to), past (an access behind a block), unloaded (as general, when the plug-in is gone).

#include <pmr_debug/pmr_debug.hpp>

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace {

void* handle;

template <class Function>
Function* function(const char* name) {
    return reinterpret_cast<Function*>(::dlsym(handle, name));
}

}  // namespace

int main(int, char** argv) {
    const std::string_view what = argv[2];
    const pmr_debug::fault_handler faults;
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource general(&pages, {.name = "host's"});
    pmr_debug::tracking_resource tracking({.name = "host's"});
    pmr_debug::canary_resource canary({.name = "host's"});
    pmr_debug::end_of_page_resource fence({.name = "host's"});
    pmr_debug::temp_resource temp({.name = "host's"});
    handle = ::dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        std::puts(::dlerror());
        return 3;
    }
    auto* const theirs = function<std::pmr::memory_resource*(bool)>("plugin_memory")(false);
    void* p = function<void*(std::size_t)>("plugin_allocate")(what == "late" ? 100'000 : 64);
    if (what == "late") {
        theirs->deallocate(p, 100'000);
        static_cast<volatile char*>(p)[5] = 1;
        return 4;
    }
    if (what == "unloaded") {
        theirs->deallocate(p, 64);
        ::dlclose(handle);
        p = std::malloc(64);
        general.deallocate(p, 64);
        return 4;
    }
    std::pmr::memory_resource* const ours = what == "general"    ? static_cast<std::pmr::memory_resource*>(&general)
                                            : what == "tracking" ? &tracking
                                            : what == "canary"   ? &canary
                                            : what == "fence"    ? &fence
                                            : what == "temp"     ? static_cast<std::pmr::memory_resource*>(&temp)
                                                                 : &pages;
    ours->deallocate(p, 64);
}
