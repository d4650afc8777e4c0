#pragma once

// The traces that a thread captured lately, floor 2, so that a repeated call path costs a few loads a frame.
//
// A frame-pointer walk is a chain of dependent loads, and its result is then hashed and compared. But if the walk
// starts at the same frame as before, and each frame found before still holds the same two words {caller's frame,
// return address}, then it would find the same frames again: exactly, not probably. These loads do not depend on each
// other.

#include <pmr_debug/stack_trace.hpp>

#include <cstdint>

namespace pmr_debug::stack {

class recent_traces {
public:
    /// Deeper captures are not kept.
    static constexpr unsigned most_frames = 16;

    /// Returns: the trace of \p frames frames that begins at \p frame, if it is known here and nothing has changed.
    /// Preconditions: \p frame is the address of a frame of the calling thread, whose table this is.
    // Reads words of other functions' frames, which the sanitizers would take for errors.
    [[nodiscard, gnu::no_sanitize_address, gnu::no_sanitize_thread]] trace_id find(std::uintptr_t frame,
                                                                                   unsigned frames) const noexcept {
        const set& s = sets_[place(frame)];
        const entry* found = &s.ways[0];
        if (found->frame != frame || found->frames != frames || found->first() != first_of(frame)) {
            found = &s.ways[1];
            if (found->frame != frame || found->frames != frames) {
                return trace_id::none;
            }
        }
        const entry& e = *found;
        // What lies in the page of this frame can be read. Beyond it there need be no frame now where one was before,
        // and a program may protect pages within its stack: those are read only if all below is as it was.
        pair different{};
        std::uintptr_t at = frame;
        unsigned i = 0;
        for (; i < e.near; ++i) {
            different |= difference(at, e.links[i]);
            at = e.links[i].caller;
        }
        for (; i + 1 < frames; ++i) {
            if ((different[0] | different[1]) != 0) [[unlikely]] {
                return trace_id::none;
            }
            different |= difference(at, e.links[i]);
            at = e.links[i].caller;
        }
        if ((different[0] | different[1]) != 0) [[unlikely]] {
            return trace_id::none;
        }
        // The outermost frame's own caller was not looked at.
        const std::uintptr_t outermost = reinterpret_cast<const std::uintptr_t*>(at)[1] ^ e.links[frames - 1].address;
        return outermost == 0 ? e.id : trace_id::none;
    }

    /// Effects: keeps \p id as the trace of the \p frames frames that begin at \p frame, all of which lie on this
    /// stack.
    [[gnu::no_sanitize_address, gnu::no_sanitize_thread]] void keep(std::uintptr_t frame, unsigned frames,
                                                                    trace_id id) noexcept {
        set& s = sets_[place(frame)];
        entry& e = s.ways[s.next];
        s.next ^= 1U;
        e.frame = frame;
        e.frames = static_cast<std::uint16_t>(frames);
        e.id = id;
        e.near = 0;
        std::uintptr_t at = frame;
        for (unsigned i = 0; i < frames; ++i) {
            const auto* const words = reinterpret_cast<const std::uintptr_t*>(at);
            e.links[i] = {words[0], words[1]};
            constexpr std::uintptr_t smallest_page = 4096;
            if (i + 1 < frames && ((at + sizeof(link) - 1) ^ frame) < smallest_page) {
                e.near = static_cast<std::uint16_t>(i + 1);
            }
            at = words[0];
        }
    }

    /// Effects: forgets everything.
    void clear() noexcept {
        for (set& s : sets_) {
            s.ways[0].frame = s.ways[1].frame = 0;
        }
    }

private:
    struct link {
        std::uintptr_t caller;
        std::uintptr_t address;
    };
    using pair [[gnu::vector_size(16)]] = std::uint64_t;
    static_assert(sizeof(link) == sizeof(pair));

    struct alignas(64) entry {
        std::uintptr_t frame;
        std::uint16_t frames;
        std::uint16_t near;  ///< frames, from the first on, that lie in its page; all but the last at most
        trace_id id;
        link links[most_frames];  ///< at a multiple of 16 bytes

        [[nodiscard]] std::uintptr_t first() const noexcept { return links[0].address; }
    };
    /// Two, so that an allocation and a free that fall on the same place do not chase each other out all the time.
    struct set {
        entry ways[2];
        unsigned next;  ///< the way to use for the next new one
    };
    static constexpr unsigned bits = 6;

    /// Bits in which the frame at \p at differs from \p kept. A frame's two words and a link are alike, so one 16-byte
    /// comparison does for both. The compiler's vectors do not need an instruction set of their own.
    [[gnu::always_inline, gnu::no_sanitize_address, gnu::no_sanitize_thread]] static pair difference(
        std::uintptr_t at, const link& kept) noexcept {
        pair words;
        pair before;
        __builtin_memcpy(&words, reinterpret_cast<const void*>(at), sizeof words);
        __builtin_memcpy(&before, &kept, sizeof before);
        return words ^ before;
    }

    [[gnu::no_sanitize_address, gnu::no_sanitize_thread]] static std::uintptr_t first_of(
        std::uintptr_t frame) noexcept {
        return reinterpret_cast<const std::uintptr_t*>(frame)[1];
    }

    /// By frame and return address: two calls in one function share a frame.
    static unsigned place(std::uintptr_t frame) noexcept {
        return static_cast<unsigned>(((frame >> 4) ^ first_of(frame)) * 0x9E3779B97F4A7C15ULL >> (64 - bits));
    }

    set sets_[1U << bits];
};

namespace detail {
extern constinit thread_local recent_traces* current_recent __attribute__((tls_model("initial-exec")));
recent_traces* make_recent() noexcept;
/// Effects: gives the memory of all threads back, as the library is unloaded.
void give_back_recent() noexcept;
}  // namespace detail

/// The calling thread's; null if it has none yet, or private memory is used up.
[[nodiscard]] inline recent_traces* this_recent() noexcept {
    return detail::current_recent;
}

/// As above, made if need be.
[[nodiscard]] inline recent_traces* ensure_recent() noexcept {
    recent_traces* const r = detail::current_recent;
    return r != nullptr ? r : detail::make_recent();
}

}  // namespace pmr_debug::stack
