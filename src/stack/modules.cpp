#include "stack/modules.hpp"

#include "os/guarded.hpp"
#include "os/thread.hpp"

#include <link.h>

#include <atomic>
#include <cstddef>
#include <cstring>

namespace pmr_debug::stack {

namespace {

// Paths, one after another, each with its NUL. They stay, so that whoever was given one may keep it. Only the end is
// written, by the holder of the lock; what lies before `used` is for all to read.
struct kept_paths {
    os::spin_lock adding;
    std::atomic<std::size_t> used{0};
    char all[std::size_t{1} << 16]{};
};
constinit os::guarded<kept_paths> kept;
const os::guard_pages kept_guards(kept);
constexpr auto& paths = kept->all;
constexpr auto& used = kept->used;
constexpr auto& adding = kept->adding;

const char* find_path(const char* path, std::size_t end) noexcept {
    for (std::size_t at = 0; at < end; at += std::strlen(paths + at) + 1) {
        if (std::strcmp(paths + at, path) == 0) {
            return paths + at;
        }
    }
    return nullptr;
}

/// Returns: a copy of \p path that stays; empty if there is no room, or another thread is adding one right now and may
/// never go on, as in the child of a fork.
const char* keep_path(const char* path) noexcept {
    const std::size_t length = std::strlen(path) + 1;
    if (length == 1) {
        return "";
    }
    if (const char* const known = find_path(path, used.load(std::memory_order_acquire)); known != nullptr) {
        return known;
    }
    for (int tries = 0; !adding.try_lock(); ++tries) {
        if (tries == 10) {
            return "";
        }
        os::sleep_ms(1);
    }
    const std::size_t end = used.load(std::memory_order_relaxed);
    const char* known = find_path(path, end);
    if (known == nullptr && length <= sizeof paths - end) {
        std::memcpy(paths + end, path, length);
        used.store(end + length, std::memory_order_release);
        known = paths + end;
    }
    adding.unlock();
    return known != nullptr ? known : "";
}

}  // namespace

module find_module(std::uintptr_t address) noexcept {
    char path[1024];
    module m;
    m.code = os::find_loaded_code(address, path);
    if (m.code.start != 0) {
        m.path = keep_path(path);
        m.base = m.code.base;
        m.executable = m.code.program;
        m.identity = os::identity_of(m.code);
    }
    return m;
}

int show_module(const module& m, int (*callback)(dl_phdr_info*, std::size_t, void*), void* data) noexcept {
    if (m.identity == 0) {
        return 0;
    }
    dl_phdr_info info{};
    info.dlpi_addr = m.base;
    info.dlpi_name = "";
    return callback(&info, sizeof info, data);
}

}  // namespace pmr_debug::stack
