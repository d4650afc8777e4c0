// The path of every request through a tracking resource. Shapes are compiled here, so that a policy of the user's own
// needs no more of the library than its header.

#include "os/thread.hpp"
#include "resources/tracking_core.hpp"
#include "resources/upstream.hpp"
#include "stack/capture.hpp"

#include <bit>

namespace pmr_debug::detail {

using outcome = metadata::block_table::outcome;

template <tracking_shape S>
void* tracking_engine<S>::allocate(tracking_core* core, std::size_t bytes, std::size_t alignment) {
    constexpr bool locked = S.threads != threading::unchecked;
    trace_id here = trace_id::none;
    if constexpr (S.traces) {
        here = stack::capture_from_caller(core->alloc_frames);
    }
    std::uint32_t me = 0;
    if constexpr (S.checks) {
        me = os::this_thread().number;
    }
    if constexpr (S.checks && S.threads == threading::single_checked) {
        core->thread.check(me, here, core->errors, core->self, nullptr, bytes, alignment);
    }
    if constexpr (S.checks && S.threads == threading::unchecked) {
        core->thread.note(me);
    }
    // A sum that cannot be is refused here, as not every upstream can be trusted to notice.
    if (!std::has_single_bit(alignment) || bytes > SIZE_MAX / 2 || alignment > SIZE_MAX / 2 - bytes) [[unlikely]] {
        core->refuse_request(bytes, alignment);
    }
    if (core->limited) [[unlikely]] {
        core->reserve(bytes, alignment);
    }
    void* p = nullptr;
    try {
        p = ask_upstream(*core->upstream, bytes, alignment);
    } catch (...) {
        core->give_up(bytes);
        throw;
    }
    if (p == nullptr || (S.checks && (reinterpret_cast<std::uintptr_t>(p) & (alignment - 1)) != 0)) [[unlikely]] {
        core->refuse_memory(p, bytes, alignment);
    }
    const auto count = [core, bytes]() noexcept {
        return core->limited ? core->usage.settle<locked>(bytes) : core->usage.add<locked>(bytes);
    };
    if constexpr (S.checks) {
        const outcome recorded = core->blocks.insert<locked>(p, bytes, alignment, here, me, count);
        if (recorded != outcome::done) [[unlikely]] {
            core->refuse_record(recorded, p, bytes, alignment);
        }
    } else {
        count();
    }
    return p;
}

template <tracking_shape S>
void tracking_engine<S>::deallocate(tracking_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    constexpr bool locked = S.threads != threading::unchecked;
    if constexpr (!S.checks) {
        core->usage.remove<locked>(bytes);
        core->upstream->deallocate(p, bytes, alignment);
    } else {
        trace_id here = trace_id::none;
        if constexpr (S.traces) {
            here = stack::capture_from_caller(core->free_frames);
        }
        const std::uint32_t me = os::this_thread().number;
        if constexpr (S.threads == threading::single_checked) {
            core->thread.check(me, here, core->errors, core->self, p, bytes, alignment);
        }
        if constexpr (S.threads == threading::unchecked) {
            core->thread.note(me);
        }
        if (p == nullptr || !core->blocks.erase_exact<locked>(p, bytes, alignment, here, me)) [[unlikely]] {
            core->deallocate_oddly(p, bytes, alignment, here, me);
            return;
        }
        core->usage.remove<locked>(bytes);
        core->upstream->deallocate(p, bytes, alignment);
    }
}

// Every shape that tracking_shape_of can return.
template struct tracking_engine<tracking_shape{threading::unchecked, false, false}>;
template struct tracking_engine<tracking_shape{threading::unchecked, true, false}>;
template struct tracking_engine<tracking_shape{threading::unchecked, true, true}>;
template struct tracking_engine<tracking_shape{threading::single_checked, true, false}>;
template struct tracking_engine<tracking_shape{threading::single_checked, true, true}>;
template struct tracking_engine<tracking_shape{threading::synchronized, false, false}>;
template struct tracking_engine<tracking_shape{threading::synchronized, true, false}>;
template struct tracking_engine<tracking_shape{threading::synchronized, true, true}>;

}  // namespace pmr_debug::detail
