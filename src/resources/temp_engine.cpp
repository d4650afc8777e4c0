// The path of every request through a temp resource. Shapes are compiled here, so that a policy of the user's own needs
// no more of the library than its header.

#include "resources/temp_core.hpp"
#include "stack/capture.hpp"

#include <bit>
#include <new>

namespace pmr_debug::detail {

template <temp_shape S>
void* temp_engine<S>::allocate(temp_core* core, std::size_t bytes, std::size_t alignment) {
    constexpr bool locked = S.threads != threading::unchecked;
    temp_request r{.bytes = bytes, .alignment = alignment};
    if constexpr (S.traces) {
        r.here = stack::capture_from_caller(core->alloc_frames);
    }
    if constexpr (S.checks) {
        r.thread = os::this_thread().number;
    }
    if constexpr (S.checks && S.threads == threading::single_checked) {
        core->thread.check(r.thread, r.here, core->errors, core->self, nullptr, bytes, alignment);
    }
    if constexpr (S.checks && S.threads == threading::unchecked) {
        core->thread.note(r.thread);
    }
    if (!std::has_single_bit(alignment) || bytes > SIZE_MAX / 4 || alignment > SIZE_MAX / 4) [[unlikely]] {
        core->refuse_request(r);
    }
    for (;;) {
        using placed = temp_core::placed;
        void* p = nullptr;
        if constexpr (!S.checks) {
            {
                const os::brief_hold<locked> hold(core->lock);
                p = core->window->take(bytes, alignment);
            }
            if (p != nullptr) [[likely]] {
                return p;
            }
            core->grow(r, temp_source::upstream);
        } else {
            placed how{};
            {
                const os::brief_hold<locked> hold(core->lock);
                how = core->place_held<S>(r, p);
            }
            switch (how) {
                case placed::done: return p;
                case placed::overflow: core->overflow(r); break;
                case placed::needs_upstream: core->grow(r, temp_source::upstream); break;
                case placed::needs_pages: core->grow(r, temp_source::pages); break;
                case placed::no_records: core->fail();
                case placed::damaged: core->skip_damaged(r); break;
            }
        }
    }
}

template <temp_shape S>
void temp_engine<S>::deallocate(temp_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    constexpr bool locked = S.threads != threading::unchecked;
    if constexpr (!S.checks) {
        if constexpr (S.reuse_last) {
            const os::brief_hold<locked> hold(core->lock);
            core->window->give_back_last(p, bytes);
        }
    } else {
        temp_request given{.bytes = bytes, .alignment = alignment};
        if constexpr (S.traces) {
            given.here = stack::capture_from_caller(core->free_frames);
        }
        given.thread = os::this_thread().number;
        if constexpr (S.threads == threading::single_checked) {
            core->thread.check(given.thread, given.here, core->errors, core->self, p, bytes, alignment);
        }
        if constexpr (S.threads == threading::unchecked) {
            core->thread.note(given.thread);
        }
        {
            const os::brief_hold<locked> hold(core->lock);
            temp_record* const r = core->find_held(reinterpret_cast<std::uintptr_t>(p));
            const bool plain =
                r != nullptr && r->state == temp_state::live && r->size == bytes && r->alignment() == alignment &&
                !core->watched &&
                (!core->options.lifo || core->newest_live == static_cast<std::size_t>(r - core->records) + 1);
            if (plain) [[likely]] {
                bool intact = true;
                if constexpr (S.fill) {
                    intact = all_bytes(r->address + bytes, core->extent(bytes) - bytes, temp_guard);
                }
                if (intact) [[likely]] {
                    core->mark_free_held(*r, given.here, given.thread);
                    return;
                }
            }
        }
        core->deallocate_oddly(p, given);
    }
}

// Every shape that temp_shape_of can return.
#define PMR_DEBUG_TEMP_SHAPES(threads)                                           \
    template struct temp_engine<temp_shape{threads, true, false, false, false}>; \
    template struct temp_engine<temp_shape{threads, true, false, true, false}>;  \
    template struct temp_engine<temp_shape{threads, true, true, false, false}>;  \
    template struct temp_engine<temp_shape{threads, true, true, true, false}>;
PMR_DEBUG_TEMP_SHAPES(threading::unchecked)
PMR_DEBUG_TEMP_SHAPES(threading::single_checked)
PMR_DEBUG_TEMP_SHAPES(threading::synchronized)
#undef PMR_DEBUG_TEMP_SHAPES
template struct temp_engine<temp_shape{threading::unchecked, false, false, false, false}>;
template struct temp_engine<temp_shape{threading::unchecked, false, false, false, true}>;
template struct temp_engine<temp_shape{threading::synchronized, false, false, false, false}>;
template struct temp_engine<temp_shape{threading::synchronized, false, false, false, true}>;

}  // namespace pmr_debug::detail
