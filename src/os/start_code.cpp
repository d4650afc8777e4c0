#include "os/start_code.hpp"

#include "os/guarded.hpp"

#include <dlfcn.h>
#include <sys/auxv.h>
#if defined(__GLIBC__)
#include <gnu/libc-version.h>
#endif

#include <atomic>

namespace pmr_debug::os {

namespace {

// The entry point is a few instructions that end in the call to the C library.
constexpr std::uintptr_t longest_entry = 64;

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 35)

// Found by several threads at once, it is the same for all; `high` is written last.
struct library_place {
    std::atomic<std::uintptr_t> low{0};
    std::atomic<std::uintptr_t> high{0};
};
constinit guarded<library_place> place;
const guard_pages place_guards(place);
constexpr auto& library_low = place->low;
constexpr auto& library_high = place->high;

bool in_c_library(std::uintptr_t address) noexcept {
    std::uintptr_t high = library_high.load(std::memory_order_acquire);
    if (high == 0) {
        dl_find_object library{};
        dl_find_object program{};
        // Not a function that a sanitizer might have put its own in place of.
        const bool apart = ::_dl_find_object(reinterpret_cast<void*>(&::gnu_get_libc_version), &library) == 0 &&
                           ::_dl_find_object(reinterpret_cast<void*>(::getauxval(AT_ENTRY)), &program) == 0 &&
                           library.dlfo_map_start != program.dlfo_map_start;  // they are one in a static program
        library_low.store(apart ? reinterpret_cast<std::uintptr_t>(library.dlfo_map_start) : 1,
                          std::memory_order_relaxed);
        high = apart ? reinterpret_cast<std::uintptr_t>(library.dlfo_map_end) : 1;
        library_high.store(high, std::memory_order_release);
    }
    return library_low.load(std::memory_order_relaxed) <= address && address < high;
}

bool in_program(std::uintptr_t address) noexcept {
    dl_find_object program{};
    if (::_dl_find_object(reinterpret_cast<void*>(::getauxval(AT_ENTRY)), &program) != 0) {
        return false;
    }
    return reinterpret_cast<std::uintptr_t>(program.dlfo_map_start) <= address &&
           address < reinterpret_cast<std::uintptr_t>(program.dlfo_map_end);
}

#else

bool in_c_library(std::uintptr_t) noexcept {
    return false;
}

bool in_program(std::uintptr_t) noexcept {
    return false;
}

#endif

}  // namespace

bool is_start_code(std::uintptr_t address) noexcept {
    return in_c_library(address) || is_program_entry(address);
}

bool is_in_program(std::uintptr_t address) noexcept {
    return in_program(address);
}

bool is_program_entry(std::uintptr_t address) noexcept {
    return address - ::getauxval(AT_ENTRY) < longest_entry;
}

}  // namespace pmr_debug::os
