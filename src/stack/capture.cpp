#include "stack/capture.hpp"

#include <pmr_debug/policy.hpp>

#include "os/stack_bounds.hpp"
#include "stack/depot.hpp"
#include "stack/unwinder.hpp"

#include <algorithm>

namespace pmr_debug {
namespace stack {

namespace {

// How near the end of the stack a chain must end to tell chains apart by their ends' positions.
constexpr std::uintptr_t near_end = 1024;

/// What a walk along the frame pointers found.
struct chain {
    std::uintptr_t frames[max_frames + 1];  // one more for the position
    unsigned depth;                         // of the frames
    unsigned words;                         // frames, and position if any
    std::uint8_t ending;
    std::uint32_t hash;
};

trace_id store(const std::uintptr_t* frames, unsigned depth, std::uint8_t ending) noexcept {
    const std::uint32_t id = intern(hash_chain(frames, depth, ending), frames, depth, ending);
    if (id == 0) {
        count_lost();
        return trace_id::none;
    }
    return hand_out(id);
}

constexpr std::uint8_t ending_of(const walk& w, unsigned most) noexcept {
    if (w.depth > most) {
        return ends_at_depth;
    }
    return w.end == walk_end::no_rules ? ends_cut_short : std::uint8_t{0};
}

trace_id store(const walk& w, unsigned most) noexcept {
    return store(w.frames, std::min(w.depth, most), ending_of(w, most));
}

void learn(const chain& found, std::uint32_t meaning, std::span<const std::uintptr_t> tail = {}) noexcept {
    const std::uint32_t key = intern(found.hash, found.frames, found.words, found.ending, tail);
    if (key != 0) {
        // release pairs with the acquire in capture: the trace named here is written.
        entry_at(key)->meaning.store(meaning, std::memory_order_release);
    }
}

/// A chain not seen before, or one that cannot be relied upon: the unwinder says what is there.
///
/// What is learnt for next time rests on this: whether a function keeps a frame pointer at a call is a property of the
/// return address. So where the chain and the unwinder agree, they will agree again for the same chain.
[[gnu::noinline, gnu::cold]] trace_id capture_slowly(unsigned most, std::uintptr_t frame_pointer, std::uintptr_t high,
                                                     const chain& found, bool known) noexcept {
    if (is_full() && !known) {
        count_lost();
        return trace_id::none;
    }
    walk truth;
    unwind(frame_pointer, most + look_ahead, truth);
    unsigned agree = 0;
    while (agree < found.depth && agree < truth.depth && found.frames[agree] == truth.frames[agree]) {
        ++agree;
    }
    const bool reached = truth.depth > most;
    const bool whole = truth.end == walk_end::outermost;

    // The unwinder is at a loss in code that the chain leads beyond. Frame pointers may well be right there, so the
    // frames are kept, but nothing vouches for them, and the trace says so.
    if (!known && agree != 0 && agree == truth.depth && !reached && truth.end == walk_end::no_rules) {
        const auto ending = static_cast<std::uint8_t>(ends_cut_short | (found.ending & ends_at_depth));
        const trace_id result = store(found.frames, found.depth, ending);
        if (result != trace_id::none) {
            learn(found, static_cast<std::uint32_t>(result));
        }
        return result;
    }

    const trace_id result = store(truth, most);
    const bool same = agree == found.depth && (reached ? agree == most : whole && agree == truth.depth);
    // The C library's start code keeps no frame pointers, so most chains end a few frames early, or go astray there.
    // These few frames never return, so it is enough to see on the stack that they are the same ones.
    const bool at_start = whole && agree != 0 && truth.depth - agree <= look_ahead;
    if (!same && !at_start) {
        count_slow_walk();
    }
    if (known || agree == 0 || result == trace_id::none) {
        return result;
    }
    if (same) {
        learn(found, static_cast<std::uint32_t>(result));
    } else if (at_start) {
        // Of the last frame that agrees, too: then the others follow at the same distance.
        std::uintptr_t tail[look_ahead + 1];
        const unsigned end = std::min(truth.depth, most);
        for (unsigned i = agree - 1; i < end; ++i) {
            tail[i - (agree - 1)] = high - truth.slots[i];
        }
        learn(found, static_cast<std::uint32_t>(result), {tail, end - (agree - 1)});
    } else {
        learn(found, unreliable);
    }
    return result;
}

/// True if the last frames of the trace \p id are where the tail of \p key says.
[[gnu::no_sanitize_address, gnu::no_sanitize_thread]] bool tail_matches(const depot_entry& key, std::uint32_t id,
                                                                        std::uintptr_t lowest,
                                                                        std::uintptr_t high) noexcept {
    const depot_entry& trace = *entry_at(id);
    const std::uintptr_t* const distance = key.frames() + key.depth;
    const std::uintptr_t* const frame = trace.frames() + trace.depth - key.tail;
    for (unsigned i = 0; i < key.tail; ++i) {
        const std::uintptr_t slot = high - distance[i];
        if (slot < lowest || *reinterpret_cast<const std::uintptr_t*>(slot) != frame[i]) {
            return false;
        }
    }
    return true;
}

}  // namespace

// The walk reads words of other functions' frames, which the sanitizers would take for errors.
[[gnu::no_sanitize_address, gnu::no_sanitize_thread]] trace_id capture(unsigned frames,
                                                                       std::uintptr_t frame_pointer) noexcept {
    if (frames == 0) {
        return trace_id::none;
    }
    const unsigned most = std::min(frames, max_frames);
    const os::stack_bounds stack = os::this_stack(frame_pointer);
    // A frame is {caller's frame pointer, return address}. Frames lie ever higher; anything else is no frame.
    const std::uintptr_t last = stack.high - 2 * sizeof(std::uintptr_t);
    chain found;
    if (frame_pointer < stack.low || frame_pointer > last) [[unlikely]] {  // an alternate signal stack, or a fiber
        found.depth = 0;
        return capture_slowly(most, frame_pointer, stack.high, found, false);
    }
    std::uintptr_t frame = frame_pointer;
    std::uint64_t h = hash_start;
    unsigned depth = 0;
    found.ending = ends_at_depth;
    for (;;) {
        const auto* const words = reinterpret_cast<const std::uintptr_t*>(frame);
        const std::uintptr_t caller = words[0];
        const std::uintptr_t address = words[1];
        found.frames[depth] = address;
        ++depth;
        h = hash_step(h, address);
        if (caller <= frame || caller > last || caller % sizeof(std::uintptr_t) != 0) [[unlikely]] {
            const std::uintptr_t distance = stack.high - frame;
            found.frames[depth] = distance < near_end ? distance : 0;
            h = hash_step(h, found.frames[depth]);
            found.ending = ends_unchained;
            break;
        }
        if (depth == most) {
            break;
        }
        frame = caller;
    }
    found.depth = depth;
    found.words = depth + (found.ending == ends_unchained ? 1U : 0U);
    found.hash = hash_finish(h, found.ending);
    if (const std::uint32_t id = find(found.hash, found.frames, found.words, found.ending); id != 0) [[likely]] {
        const depot_entry& key = *entry_at(id);
        const std::uint32_t meaning = key.meaning.load(std::memory_order_acquire);
        if (meaning != 0) [[likely]] {
            if (meaning != unreliable && (key.tail == 0 || tail_matches(key, meaning, frame_pointer, stack.high)))
                [[likely]] {
                return static_cast<trace_id>(meaning);
            }
            return capture_slowly(most, frame_pointer, stack.high, found, true);
        }
    }
    return capture_slowly(most, frame_pointer, stack.high, found, false);
}

}  // namespace stack

trace_id capture_trace(unsigned frames) noexcept {
    return stack::capture_from_caller(frames);
}

}  // namespace pmr_debug
