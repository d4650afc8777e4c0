#include "stack/capture.hpp"

#include <pmr_debug/policy.hpp>

#include "os/stack_bounds.hpp"
#include "os/start_code.hpp"
#include "stack/depot.hpp"
#include "stack/ending.hpp"
#include "stack/recent.hpp"
#include "stack/unwinder.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <span>

namespace pmr_debug {
namespace stack {

namespace {

// How near the end of the stack a chain must end to tell chains apart by their ends' positions.
constexpr std::uintptr_t near_end = 1024;

// On any machine; where pages are larger, more is asked than need be.
constexpr std::uintptr_t smallest_page = 4096;

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

/// A frame pointer is followed into another page only if there is a frame for sure, or the page can be read: a program
/// may protect a page within its stack, and in code that keeps no frame pointers the register holds anything. Whether
/// code keeps one is a property of the return address, and once the unwinder has agreed it is known here.
/// Collisions cost a system call.
class frame_keepers {
public:
    [[nodiscard]] static bool known(std::uintptr_t address) noexcept {
        return place(address).load(std::memory_order_relaxed) == address;
    }
    static void add(std::uintptr_t address) noexcept { place(address).store(address, std::memory_order_relaxed); }

private:
    static constexpr unsigned bits = 12;

    static std::atomic<std::uintptr_t>& place(std::uintptr_t address) noexcept {
        return places_[address * 0x9E37'79B9'7F4A'7C15 >> (64 - bits)];
    }

    static constinit std::atomic<std::uintptr_t> places_[std::size_t{1} << bits];
};
constinit std::atomic<std::uintptr_t> frame_keepers::places_[std::size_t{1} << bits]{};

/// Crossings of a walk that were allowed by a system call.
struct asked_crossings {
    std::uintptr_t addresses[4];
    unsigned count = 0;
};

/// True if the caller's frame at \p frame, in another page, can be read. \p address: the return address into the
/// caller.
bool may_cross(std::uintptr_t address, std::uintptr_t frame, asked_crossings& asked) noexcept {
    if (frame_keepers::known(address)) [[likely]] {
        return true;
    }
    if (asked.count < sizeof asked.addresses / sizeof asked.addresses[0]) {
        asked.addresses[asked.count++] = address;
    }
    return os::can_read(frame) && os::can_read(frame + sizeof(std::uintptr_t));
}

/// The last place in the page of \p frame where both words of a frame lie in it. Above a frame that lies across two
/// pages nothing is sure.
constexpr std::uintptr_t last_frame_in_page(std::uintptr_t frame) noexcept {
    const std::uintptr_t last = (frame | (smallest_page - 1)) + 1 - 2 * sizeof(std::uintptr_t);
    return last > frame ? last : frame;
}

/// A word that must be on the stack for a chain to mean what it meant before.
struct witness {
    std::uintptr_t distance;  ///< below the stack's high end, bytes
    std::uintptr_t value;
};
constexpr unsigned words_of_witness = 2;

/// Returns: false if the depot is full, or holds the chain without these witnesses.
bool learn(const chain& found, std::uint32_t meaning, std::span<const std::uintptr_t> witnesses = {}) noexcept {
    const std::uint32_t key = intern(found.hash, found.frames, found.words, found.ending, witnesses);
    if (key == 0) {
        return false;
    }
    depot_entry& e = *entry_at(key);
    if (e.tail != witnesses.size() || !std::equal(witnesses.begin(), witnesses.end(), e.frames() + e.depth)) {
        return false;
    }
    // release pairs with the acquire in capture: the trace named here is written.
    e.meaning.store(meaning, std::memory_order_release);
    return true;
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
    const bool whole = truth.end == walk_end::outermost;
    for (unsigned i = 0; i + 1 < agree; ++i) {
        frame_keepers::add(found.frames[i]);
    }
    // What comes before main or a thread's function tells nobody anything, and would be in every trace.
    unsigned depth = truth.depth;
    while (whole && depth > 1 && os::is_start_code(truth.frames[depth - 1]) && !is_end_code(truth.frames[depth - 1])) {
        --depth;
    }
    const bool reached = depth > most;
    const bool at_a_loss = !reached && truth.end == walk_end::no_rules;

    // In code that the unwinder has no rules for. Frame pointers may well be right there, so the frames that the chain
    // has beyond are kept, but nothing vouches for them, and the trace says so.
    if (!known && agree != 0 && agree == depth && at_a_loss) {
        const auto ending = static_cast<std::uint8_t>(ends_cut_short | (found.ending & ends_at_depth));
        const trace_id result = store(found.frames, found.depth, ending);
        if (result != trace_id::none) {
            learn(found, static_cast<std::uint32_t>(result));
        }
        return result;
    }

    const trace_id result = store(truth.frames, reached ? most : depth,
                                  reached ? ends_at_depth : (at_a_loss ? ends_cut_short : std::uint8_t{0}));
    if (known || agree == 0 || result == trace_id::none) {
        count_slow_walk();
        return result;
    }
    const auto meaning = static_cast<std::uint32_t>(result);
    if (agree == found.depth && (reached ? agree == most : whole && agree == truth.depth)) {
        learn(found, meaning);
    } else if (whole && truth.depth - agree <= look_ahead) {
        // The C library's start code keeps no frame pointers, so many chains end a few frames early, or go astray
        // there. These outermost frames are always in the same place, so it is enough to see there that they are the
        // same.
        std::uintptr_t witnesses[(look_ahead + 1) * words_of_witness];
        unsigned words = 0;
        for (unsigned i = agree - 1; i < truth.depth; ++i) {
            witnesses[words++] = high - truth.slots[i];
            witnesses[words++] = truth.frames[i];
        }
        if (!learn(found, meaning, {witnesses, words})) {
            count_slow_walk();
        }
    } else {
        count_slow_walk();
        learn(found, unreliable);
    }
    return result;
}

/// True if all witnesses of \p key are there. Nothing below \p lowest is read.
[[gnu::no_sanitize_address, gnu::no_sanitize_thread]] bool witnesses_agree(const depot_entry& key,
                                                                           std::uintptr_t lowest,
                                                                           std::uintptr_t high) noexcept {
    const std::uintptr_t* const words = key.frames() + key.depth;
    for (unsigned i = 0; i < key.tail; i += words_of_witness) {
        const std::uintptr_t slot = high - words[i];
        if (slot < lowest || *reinterpret_cast<const std::uintptr_t*>(slot) != words[i + 1]) {
            return false;
        }
    }
    return true;
}

}  // namespace

// The walk reads words of other functions' frames, which the sanitizers would take for errors.
[[gnu::no_sanitize_address, gnu::no_sanitize_thread]] trace_id capture_walking(unsigned frames,
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
    asked_crossings asked;
    std::uintptr_t limit = std::min(last, last_frame_in_page(frame));
    found.ending = ends_at_depth;
    for (;;) {
        const auto* const words = reinterpret_cast<const std::uintptr_t*>(frame);
        const std::uintptr_t caller = words[0];
        const std::uintptr_t address = words[1];
        found.frames[depth] = address;
        ++depth;
        h = hash_step(h, address);
        if (caller <= frame || caller > limit || caller % sizeof(std::uintptr_t) != 0) [[unlikely]] {
            const bool is_frame = caller > frame && caller <= last && caller % sizeof(std::uintptr_t) == 0;
            if (!is_frame || (depth != most && !may_cross(address, caller, asked))) {
                const std::uintptr_t distance = stack.high - frame;
                found.frames[depth] = distance < near_end ? distance : 0;
                h = hash_step(h, found.frames[depth]);
                found.ending = ends_unchained;
                break;
            }
            limit = std::min(last, last_frame_in_page(caller));
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
            if (meaning != unreliable && (key.tail == 0 || witnesses_agree(key, frame_pointer, stack.high)))
                [[likely]] {
                const auto result = static_cast<trace_id>(meaning);
                for (unsigned i = 0; i < asked.count; ++i) {
                    frame_keepers::add(asked.addresses[i]);
                }
                recent_traces* const recent = most <= recent_traces::most_frames ? ensure_recent() : nullptr;
                if (recent != nullptr && key.tail == 0 && found.ending == ends_at_depth) {
                    recent->keep(frame_pointer, most, result);
                }
                return result;
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
