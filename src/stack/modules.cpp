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
    module found;
};

int match(dl_phdr_info* info, std::size_t, void* argument) noexcept {
    search& s = *static_cast<search*>(argument);
    for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        // Unsigned: an address below the segment wraps around and is too large.
        if (header.p_type == PT_LOAD && s.address - info->dlpi_addr - header.p_vaddr < header.p_memsz) {
            const bool named = info->dlpi_name != nullptr && info->dlpi_name[0] != '\0';
            s.found = {named ? info->dlpi_name : executable_path(), info->dlpi_addr, !named};
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
    search s{address, {}};
    ::dl_iterate_phdr(match, &s);
    return s.found;
}

module_changes current_modules() noexcept {
    module_changes changes;
    ::dl_iterate_phdr(count, &changes);
    return changes;
}

int show_module(const module& m, int (*callback)(dl_phdr_info*, std::size_t, void*), void* data) noexcept {
    struct request {
        const module& wanted;
        int (*callback)(dl_phdr_info*, std::size_t, void*);
        void* data;
    } r{m, callback, data};
    return ::dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t size, void* argument) {
            const request& q = *static_cast<request*>(argument);
            const bool named = info->dlpi_name != nullptr && info->dlpi_name[0] != '\0';
            if (info->dlpi_addr != q.wanted.base || (named ? info->dlpi_name != q.wanted.path : !q.wanted.executable)) {
                return 0;
            }
            dl_phdr_info nameless = *info;
            nameless.dlpi_name = "";
            q.callback(&nameless, size, q.data);
            return 1;
        },
        &r);
}

}  // namespace pmr_debug::stack
