// What Valgrind's Memcheck and AddressSanitizer are told about blocks.
//
//   new unit: all of it inaccessible ─> handed out: the block is allocated, its slack stays inaccessible ─> freed
//
// Memcheck keeps blocks in a table by address and allows none within another of this kind. So in memory that is itself
// a block of such a resource, and where no record says which blocks live, only accesses are checked.

#include "os/other_tools.hpp"
#include "resources/general_purpose_memory.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pmr_debug::detail {

namespace {

bool announces(const general_purpose_core& core, const unit& u) noexcept {
    return core.record_bytes != 0 && !u.from->nested;
}

}  // namespace

void tell_handed_out(const general_purpose_core& core, slot_ref s, std::size_t bytes) noexcept {
    unsigned char* const block = s.block(core);
    if (core.poisons) {
        os::unpoison(block, bytes);
        os::poison(block + bytes, static_cast<std::size_t>(s.address() + s.owner->slot_bytes() - block) - bytes);
    }
    if (announces(core, *s.owner)) {
        os::tell_allocated(block, bytes);
    } else {
        os::tell_undefined(block, bytes);
    }
}

void tell_taken_back(general_purpose_core& core, const void* p) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    auto* const u = static_cast<unit*>(metadata::address_map::find(address, &core));
    metadata::owned_block live;
    if (u == nullptr || (core.record_bytes != 0 && !owns_block(&core, p, &live))) {
        return;
    }
    if (core.poisons) {
        os::unpoison(slot_holding(*u, address).address(), u->slot_bytes());
    }
    if (announces(core, *u)) {
        os::tell_freed(p);
    } else {
        os::tell_inaccessible(p, core.record_bytes != 0 ? live.block.size : u->slot_bytes());
    }
}

void tell_end(general_purpose_core& core) noexcept {
    for (unit* u = core.units; u != nullptr; u = u->following) {
        const std::uint32_t used = announces(core, *u) ? u->used() : 0;
        for (std::uint32_t i = 0; i < used; ++i) {
            const slot_ref s{u, i};
            if (s.record(core).state.load(std::memory_order_acquire) == slot_state::live) {
                os::tell_freed(s.block(core));
            }
        }
    }
}

void fill_memory(const general_purpose_core& core, void* p, unsigned char value, std::size_t bytes) noexcept {
    if (!core.poisons) {
        std::memset(p, value, bytes);
        return;
    }
    os::unpoison(p, bytes);
    std::memset(p, value, bytes);
    os::poison(p, bytes);
}

}  // namespace pmr_debug::detail
