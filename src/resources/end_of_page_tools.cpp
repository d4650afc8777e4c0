// What Memcheck and AddressSanitizer are told about the memory of an end-of-page resource.
//
//   handed out:  | closed …  canary | block, open | up to the alignment, closed | guard page, closed |      freed: all
//   closed
//
// Pages move to other addresses, and addresses are used again; so whatever is known of a slot from before, handing it
// out says all of it anew. Only where the memory leaves the resource is something to be taken back.

#include "os/other_tools.hpp"
#include "resources/end_of_page_core.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace pmr_debug::detail::fence {

namespace {

const void* at(std::uintptr_t address) noexcept {
    return reinterpret_cast<const void*>(address);
}

void open_range(std::uintptr_t from, std::uintptr_t to) noexcept {
    os::unpoison(at(from), to - from);
    os::tell_undefined(at(from), to - from);
}

void close_range(std::uintptr_t from, std::uintptr_t to) noexcept {
    os::poison(at(from), to - from);
    os::tell_inaccessible(at(from), to - from);
}

/// The block's pages, its canaries, and the guard page, which may be on either side or hold the block.
struct surroundings {
    std::uintptr_t block;
    std::uintptr_t end;
    std::uintptr_t from;
    std::uintptr_t to;
};

surroundings around(const fence_core& core, slot_ref s) noexcept {
    const canaries c = canaries_of(core, s);
    const std::uintptr_t guard = geometry_of(core, s).guard;
    const std::uintptr_t first = c.block & ~(page - 1);
    const std::uintptr_t last = os::round_up(c.end, page);
    return {c.block, c.end, std::min({c.front, first, guard}), std::max({c.back, last, guard + page})};
}

/// Memcheck lists blocks, unless they lie within one: in an upstream's.
bool announces(const fence_core& core) noexcept {
    return core.guarded_range();
}

}  // namespace

void open_slot(const fence_core& core, slot_ref s) noexcept {
    const surroundings a = around(core, s);
    // Not the guard page as a whole: for Memcheck that would say that it can be touched.
    const canaries c = canaries_of(core, s);
    os::unpoison(at(a.from), a.to - a.from);
    os::tell_undefined(at(c.front), c.back - c.front);
}

void tell_handed_out(const fence_core& core, slot_ref s) noexcept {
    const surroundings a = around(core, s);
    // In this order: of 8 bytes in which a block begins, the sanitizer can only be told that all may be touched.
    close_range(a.from, a.to);
    os::unpoison(at(a.block), a.end - a.block);
    if (announces(core)) {
        os::tell_allocated(at(a.block), a.end - a.block);
    } else {
        os::tell_undefined(at(a.block), a.end - a.block);
    }
}

void tell_taken_back(const fence_core& core, slot_ref s) noexcept {
    const surroundings a = around(core, s);
    os::poison(at(a.from), a.to - a.from);
    if (announces(core)) {
        os::tell_freed(at(a.block));
    } else {
        os::tell_inaccessible(at(a.block), a.end - a.block);
    }
}

void tell_trapped(const unit& u) noexcept {
    os::forget_poison(at(u.base), u.size);
}

void tell_given_back(const unit& u) noexcept {
    open_range(u.base, u.base + u.size);
}

void tell_end(const fence_core& core) noexcept {
    if (!announces(core)) {
        return;
    }
    for (const unit* u = core.active.first; u != nullptr; u = u->after) {
        for (std::uint32_t i = 0; i < u->capacity; ++i) {
            const slot_ref s{const_cast<unit*>(u), i};
            if (s.record().state.load(std::memory_order_acquire) == slot_state::live) {
                os::tell_freed(at(address_of(core, s)));
            }
        }
    }
    os::forget_poison(at(core.base), (core.wrapped ? core.granules : core.frontier) * granule);
}

}  // namespace pmr_debug::detail::fence
