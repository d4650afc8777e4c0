#include "os/unwind_table.hpp"

#include "os/guarded.hpp"

#include <dlfcn.h>
#include <link.h>
#include <sys/auxv.h>

#include <algorithm>
#include <cstddef>

namespace pmr_debug::os {

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 35)

namespace {

/// Files that were there when the program started, of which none can be unloaded. Where this library is itself in a
/// file that was loaded later, others of that time may have been, too: then only the program's is listed.
struct first_files {
    std::uintptr_t starts[64]{};
    std::size_t count = 0;
};
constinit guarded<first_files> first;

unwind_table ask(std::uintptr_t address) noexcept {
    dl_find_object found{};
    if (::_dl_find_object(reinterpret_cast<void*>(address), &found) != 0) {
        return {};
    }
    return {static_cast<const unsigned char*>(found.dlfo_eh_frame),
            reinterpret_cast<std::uintptr_t>(found.dlfo_map_start),
            reinterpret_cast<std::uintptr_t>(found.dlfo_map_end), found.dlfo_link_map};
}

void note(std::uintptr_t start) noexcept {
    if (first->count < sizeof first->starts / sizeof first->starts[0]) {
        first->starts[first->count++] = start;
    }
}

/// Effects: notes them, before main.
class first_look {
public:
    first_look() noexcept {
        const unwind_table program = ask(::getauxval(AT_ENTRY));
        const unwind_table here = ask(reinterpret_cast<std::uintptr_t>(&note));
        note(program.low);
        if (here.low == program.low) {
            const auto* entry = static_cast<const link_map*>(program.entry);
            for (; entry != nullptr; entry = entry->l_next) {
                const unwind_table t = ask(reinterpret_cast<std::uintptr_t>(entry->l_ld));
                if (t.low != program.low && t.header != nullptr) {
                    note(t.low);
                }
            }
        }
    }
};
[[gnu::init_priority(101)]] const first_look looked;  // other static objects may capture
const guard_pages first_guards(first);

}  // namespace

unwind_table find_unwind_table(std::uintptr_t address) noexcept {
    const unwind_table t = ask(address);
    return t.header != nullptr ? t : unwind_table{};
}

bool is_permanent(const unwind_table& table) noexcept {
    const auto* const end = first->starts + first->count;
    return std::find(static_cast<const std::uintptr_t*>(first->starts), end, table.low) != end;
}

#else

unwind_table find_unwind_table(std::uintptr_t) noexcept {
    return {};
}

bool is_permanent(const unwind_table&) noexcept {
    return false;
}

#endif

}  // namespace pmr_debug::os
