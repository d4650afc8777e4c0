// The path of every request through a canary resource. Shapes are compiled here, so that a policy of the user's own
// needs no more of the library than its header.

#include "os/thread.hpp"
#include "resources/canary_core.hpp"
#include "resources/upstream.hpp"
#include "stack/capture.hpp"

#include <new>

namespace pmr_debug::detail {

using outcome = metadata::block_table::outcome;

template <canary_shape S>
void* canary_engine<S>::allocate(canary_core* core, std::size_t bytes, std::size_t alignment) {
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
    if (!core->is_possible(bytes, alignment)) [[unlikely]] {
        core->refuse_request(bytes, alignment);
    }
    const canary_layout at = core->layout(bytes, alignment);
    void* base = nullptr;
    try {
        base = ask_upstream(*core->upstream, at.total, at.alignment);
    } catch (const std::bad_alloc&) {
        base = core->ask_again(at.total, at.alignment);
    } catch (...) {
        core->usage.fail();
        throw;
    }
    if (base == nullptr || (S.checks && (reinterpret_cast<std::uintptr_t>(base) & (at.alignment - 1)) != 0))
        [[unlikely]] {
        core->refuse_memory(base, at, bytes, alignment);
    }
    std::byte* const p = static_cast<std::byte*>(base) + at.front;
    if constexpr (S.checks) {
        // The guards are written with the record's lock held: not earlier, or a block that an upstream handed out twice
        // would be overwritten; not later, or a check in another thread would find a block without guards.
        const outcome recorded = core->blocks.insert<locked>(p, bytes, alignment, here, me, [&]() noexcept {
            if constexpr (S.guards) {
                core->guard.write_guard(p - at.front, at.front);
                core->guard.write_guard(p + bytes, at.back);
            }
            return core->usage.add<locked>(bytes);
        });
        if (recorded != outcome::done) [[unlikely]] {
            core->refuse_record(recorded, p, at, bytes, alignment);
        }
        if constexpr (S.fill) {
            core->fresh.write(p, bytes);
        }
        if (core->watched) [[unlikely]] {
            core->announce(p, bytes, alignment);
        }
    } else {
        core->usage.add<locked>(bytes);
    }
    core->hold(at.total);
    return p;
}

template <canary_shape S>
void canary_engine<S>::deallocate(canary_core* core, void* p, std::size_t bytes, std::size_t alignment) noexcept {
    constexpr bool locked = S.threads != threading::unchecked;
    if constexpr (!S.checks) {
        const canary_layout at = core->layout(bytes, alignment);
        core->usage.remove<locked>(bytes);
        core->let_go(at.total);
        core->upstream->deallocate(p, at.total, at.alignment);
    } else {
        core->blocks.prefetch(p);  // while the trace is taken
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
        retired_block b;
        const auto known = [&b](const metadata::block_entry& e) noexcept { b.block = e; };
        if (p == nullptr || !core->blocks.erase_exact<locked>(p, bytes, alignment, here, me, known)) [[unlikely]] {
            if (core->reports().is_anothers(p, bytes, alignment)) {
                return;
            }
            const outcome erased = p == nullptr ? outcome::unknown : core->blocks.erase(p, here, me, b.block);
            if (erased != outcome::done) {
                core->refuse_pointer(erased, p, b.block, bytes, alignment);
                return;
            }
            core->reports().mismatch(p, b.block, bytes, alignment);
        }
        // From here on what was recorded counts.
        const std::size_t size = b.block.size;
        core->usage.remove<locked>(size);
        const canary_layout at = core->layout(size, b.block.alignment);
        b.bytes = at.total;
        if (core->watched) [[unlikely]] {
            if constexpr (S.waits) {
                b.block.live = false;
                b.block.freed = here;
                b.block.free_thread = me;
            }
            core->deallocate_watched(b);
            return;
        }
        auto* const block = static_cast<std::byte*>(p);
        if constexpr (S.guards) {
            if (!core->guard.guard_intact(block - at.front, at.front) ||
                !core->guard.guard_intact(block + size, at.back)) [[unlikely]] {
                core->keep_overrun(b);
                return;
            }
        }
        if constexpr (S.fill) {
            core->freed.write(block, size);
        }
        if constexpr (S.waits) {
            b.block.live = false;
            b.block.freed = here;
            b.block.free_thread = me;
            core->retire(b);
        } else {
            core->let_go(at.total);
            core->upstream->deallocate(block - at.front, at.total, at.alignment);
        }
    }
}

// Every shape that canary_shape_of can return.
#define PMR_DEBUG_SHAPE(THREADS, TRACES, GUARDS, FILL, WAITS)                 \
    template struct canary_engine<canary_shape{.threads = threading::THREADS, \
                                               .checks = true,                \
                                               .traces = TRACES,              \
                                               .guards = GUARDS,              \
                                               .fill = FILL,                  \
                                               .waits = WAITS}>;
#define PMR_DEBUG_WAITS(...) PMR_DEBUG_SHAPE(__VA_ARGS__, false) PMR_DEBUG_SHAPE(__VA_ARGS__, true)
#define PMR_DEBUG_FILL(...) PMR_DEBUG_WAITS(__VA_ARGS__, false) PMR_DEBUG_WAITS(__VA_ARGS__, true)
#define PMR_DEBUG_GUARDS(...) PMR_DEBUG_FILL(__VA_ARGS__, false) PMR_DEBUG_FILL(__VA_ARGS__, true)
#define PMR_DEBUG_THREADS(THREADS) PMR_DEBUG_GUARDS(THREADS, false) PMR_DEBUG_GUARDS(THREADS, true)

PMR_DEBUG_THREADS(unchecked)
PMR_DEBUG_THREADS(single_checked)
PMR_DEBUG_THREADS(synchronized)
template struct canary_engine<canary_shape{threading::unchecked, false, false, false, false, false}>;
template struct canary_engine<canary_shape{threading::synchronized, false, false, false, false, false}>;

}  // namespace pmr_debug::detail
