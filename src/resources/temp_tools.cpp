// What Memcheck and AddressSanitizer are told about the memory of a temp resource: what is no live block is closed to
// them. Memcheck hears of accesses only, not of blocks: an arena lies within the block of a buffer or chunk, and what
// is winked out is no leak.

#include "os/other_tools.hpp"
#include "resources/temp_core.hpp"

#include <algorithm>

namespace pmr_debug::detail {

void temp_core::open_memory(std::uintptr_t from, std::uintptr_t to) const noexcept {
    if (watched && from < to) {
        os::unpoison(reinterpret_cast<const void*>(from), to - from);
        os::tell_undefined(reinterpret_cast<const void*>(from), to - from);
    }
}

void temp_core::close_memory(std::uintptr_t from, std::uintptr_t to) const noexcept {
    if (watched && from < to) {
        os::poison(reinterpret_cast<const void*>(from), to - from);
        os::tell_inaccessible(reinterpret_cast<const void*>(from), to - from);
    }
}

void temp_core::bury_memory(std::uintptr_t from, std::uintptr_t to) const noexcept {
    if (from < to) {
        open_memory(from, to);
        if (fills) {
            fill_bytes(from, to - from, temp_dead);
        }
        close_memory(from, to);
    }
}

temp_core::placed temp_core::place_watched_held(const temp_request& r, void*& out, place_function place) noexcept {
    const std::uintptr_t from = window->next;
    const std::uintptr_t at = exact ? place_of<true>(r) : place_of<false>(r);
    const std::uintptr_t room = at <= window->end ? window->end - at : 0;
    const std::uintptr_t end = std::min(room, r.room() + guard) + at;
    const os::unseen_by_valgrind hidden(true);
    if (room != 0) {
        os::unpoison(reinterpret_cast<const void*>(from), end - from);
    }
    const placed how = (this->*place)(r, out);
    if (room != 0) {
        close_memory(from, end);
    }
    if (how == placed::done) {
        open_memory(reinterpret_cast<std::uintptr_t>(out), reinterpret_cast<std::uintptr_t>(out) + r.bytes);
    }
    return how;
}

}  // namespace pmr_debug::detail
