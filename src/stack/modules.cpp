#include "stack/modules.hpp"

#include <link.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>

namespace pmr_debug::stack {

namespace {

// The loader does not name the executable.
constinit char executable[4096]{};
constinit std::atomic<int> executable_state{0};  // 0 not looked for, 1 being written, 2 known

const char* executable_path() noexcept {
    int state = executable_state.load(std::memory_order_acquire);
    if (state == 0 && executable_state.compare_exchange_strong(state, 1, std::memory_order_acq_rel)) {
        const ssize_t n = ::readlink("/proc/self/exe", executable, sizeof executable - 1);
        executable[n < 0 ? 0 : n] = '\0';
        executable_state.store(2, std::memory_order_release);
        state = 2;
    }
    return state == 2 ? executable : "";
}

struct search {
    std::uintptr_t address;
    const char* path = nullptr;
    std::uintptr_t base = 0;
};

int match(dl_phdr_info* info, std::size_t, void* argument) noexcept {
    search& s = *static_cast<search*>(argument);
    for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        // Unsigned: an address below the segment wraps around and is too large.
        if (header.p_type == PT_LOAD && s.address - info->dlpi_addr - header.p_vaddr < header.p_memsz) {
            s.path = info->dlpi_name != nullptr ? info->dlpi_name : "";
            s.base = info->dlpi_addr;
            return 1;
        }
    }
    return 0;
}

int count(dl_phdr_info* info, std::size_t size, void* argument) noexcept {
    if (size >= offsetof(dl_phdr_info, dlpi_subs) + sizeof info->dlpi_subs) {
        *static_cast<module_changes*>(argument) = {info->dlpi_adds, info->dlpi_subs};
    }
    return 1;
}

}  // namespace

module find_module(std::uintptr_t address) noexcept {
    search s{address};
    ::dl_iterate_phdr(match, &s);
    if (s.path == nullptr) {
        return {};
    }
    return {s.path[0] != '\0' ? s.path : executable_path(), s.base};
}

module_changes current_modules() noexcept {
    module_changes changes;
    ::dl_iterate_phdr(count, &changes);
    return changes;
}

}  // namespace pmr_debug::stack
