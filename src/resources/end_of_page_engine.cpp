// The path of every request through an end-of-page resource. Shapes are compiled here, so that a policy of the user's
// own needs no more of the library than its header.

#include "os/virtual_memory.hpp"
#include "resources/end_of_page_core.hpp"
#include "stack/capture.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

namespace pmr_debug::detail {

namespace {

using fence::slot_record;
using fence::slot_ref;
using fence::slot_state;

unsigned char* bytes_at(std::uintptr_t address) noexcept {
    return reinterpret_cast<unsigned char*>(address);
}

[[noreturn]] void refuse(fence_core& core, std::size_t bytes, bool reserved) {
    core.usage.fail();
    if (reserved) {
        core.usage.abandon(bytes);
    }
    throw std::bad_alloc();
}

void reserve(fence_core& core, std::size_t bytes, std::size_t alignment) {
    const usage_counters::verdict v =
        core.usage.reserve<true>(bytes, core.options.limit_bytes, core.options.limit_blocks);
    if (!v.allowed) {
        if (core.shape.checks) {
            fence::report_limit(core, v.limit, v.in_use, bytes, alignment);
        }
        refuse(core, bytes, false);
    }
}

/// Of a block larger than a page so much is filled, at either end: more would take memory for pages that may never be
/// touched.
constexpr std::size_t filled_end = 1024;

/// Effects: writes the canaries around a fresh block, and fills it.
void dress(const fence_core& core, slot_ref s) noexcept {
    const fence::canaries c = fence::canaries_of(core, s);
    if (core.rules.fill && c.end - c.block <= fence::page) [[likely]] {
        std::memset(bytes_at(c.front), fence::canary_byte, c.back - c.front);
        return;
    }
    const std::size_t within = core.rules.fill ? filled_end : 0;
    if (const std::uintptr_t to = c.block + within; c.front != to) {
        std::memset(bytes_at(c.front), fence::canary_byte, to - c.front);
    }
    if (const std::uintptr_t from = c.end - within; c.back != from) {
        std::memset(bytes_at(from), fence::canary_byte, c.back - from);
    }
}

}  // namespace

template <fence_shape S>
void* fence_engine<S>::allocate(fence_core* core, std::size_t bytes, std::size_t alignment) {
    constexpr bool locked = S.threads != threading::unchecked;
    trace_id here = trace_id::none;
    if constexpr (S.traces) {
        here = stack::capture_from_caller(core->rules.alloc_frames);
    }
    const std::uint32_t me = S.checks ? os::this_thread().number : 0;
    if constexpr (S.checks && S.threads == threading::single_checked) {
        core->thread.check(me, here, core->errors, core->self, nullptr, bytes, alignment);
    }
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
        [[unlikely]] {  // has_single_bit calls a function on x86-64
        if constexpr (S.checks) {
            fence::report_request(*core, error_kind::bad_alignment, nullptr, bytes, alignment);
        }
        refuse(*core, bytes, false);
    }
    // Pools probe their upstream with sizes that cannot be: no report. This leaves room for what is added.
    if (bytes > os::address_space_bytes || alignment > os::address_space_bytes) [[unlikely]] {
        refuse(*core, bytes, false);
    }
    if (core->limited) [[unlikely]] {
        reserve(*core, bytes, alignment);
    }
    const slot_ref s = fence::take_slot<locked>(*core, bytes, alignment);
    if (s.owner == nullptr) [[unlikely]] {
        refuse(*core, bytes, core->limited);
    }
    slot_record& r = s.record();
    r.size = bytes;
    r.alignment = static_cast<std::uint8_t>(std::countr_zero(alignment));
    r.allocated = here;
    r.alloc_thread = me;
    if (core->watched) [[unlikely]] {
        fence::open_slot(*core, s);
    }
    if (core->window != 0 || core->rules.fill) {
        dress(*core, s);
    }
    if (core->watched) [[unlikely]] {
        fence::tell_handed_out(*core, s);
    }
    r.state.store(slot_state::live, std::memory_order_release);
    core->limited ? core->usage.settle<locked>(bytes) : core->usage.add<locked>(bytes);
    return bytes_at(fence::address_of(*core, s));
}

template <fence_shape S>
void fence_engine<S>::deallocate(fence_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    constexpr bool locked = S.threads != threading::unchecked;
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    fence::unit* const u = fence::find_unit(*core, address);
    slot_ref s = u != nullptr ? fence::slot_at(*u, address) : slot_ref{};
    if (u != nullptr) {  // while the trace is taken
        constexpr std::size_t line = 64;
        __builtin_prefetch(u->records + s.index, 1);
        for (std::size_t i = line; i <= std::min(core->window, 4 * line); i += line) {
            __builtin_prefetch(bytes_at(core->overrun_side ? address - i : address + bytes + i), 0);
        }
    }
    trace_id here = trace_id::none;
    if constexpr (S.traces) {
        here = stack::capture_from_caller(core->rules.free_frames);
    }
    const std::uint32_t me = S.checks ? os::this_thread().number : 0;
    if constexpr (S.checks && S.threads == threading::single_checked) {
        core->thread.check(me, here, core->errors, core->self, p, bytes, alignment);
    }
    if constexpr (S.checks) {
        const bool as_recorded = u != nullptr && s.index < u->capacity &&
                                 s.record().state.load(std::memory_order_acquire) == slot_state::live &&
                                 s.record().size == bytes && (std::size_t{1} << s.record().alignment) == alignment &&
                                 fence::address_of(*core, s) == address;
        if (!as_recorded) [[unlikely]] {
            s = fence::examine_free(*core, p, bytes, alignment);
        }
    }
    if (s.owner == nullptr) [[unlikely]] {
        return;
    }
    slot_record& r = s.record();
    slot_state before = slot_state::live;
    if (locked && !os::single_threaded()) {
        r.state.compare_exchange_strong(before, slot_state::freeing, std::memory_order_acq_rel);
    } else {
        before = r.state.load(std::memory_order_relaxed);
        if (before == slot_state::live) {
            r.state.store(slot_state::freeing, std::memory_order_relaxed);
        }
    }
    if (before != slot_state::live) [[unlikely]] {
        if constexpr (S.checks) {
            fence::report_not_live(*core, s, before, p, bytes, alignment);
        }
        return;
    }
    r.freed = here;
    r.free_thread = me;
    const std::size_t size = r.size;
    const bool intact = core->window == 0 || fence::verify_canaries(*core, s);
    core->usage.remove<locked>(size);
    fence::let_go(*core, s, intact ? slot_state::freed : slot_state::damaged);
}

// Every shape that fence_shape_of can return.
template struct fence_engine<fence_shape{threading::unchecked, false, false}>;
template struct fence_engine<fence_shape{threading::unchecked, true, false}>;
template struct fence_engine<fence_shape{threading::unchecked, true, true}>;
template struct fence_engine<fence_shape{threading::single_checked, true, false}>;
template struct fence_engine<fence_shape{threading::single_checked, true, true}>;
template struct fence_engine<fence_shape{threading::synchronized, false, false}>;
template struct fence_engine<fence_shape{threading::synchronized, true, false}>;
template struct fence_engine<fence_shape{threading::synchronized, true, true}>;

}  // namespace pmr_debug::detail
