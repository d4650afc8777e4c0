#pragma once

// The traces that a thread captured lately, floor 2, so that a repeated call path costs a few loads a frame.
//
// A walk is a chain of dependent loads, and its result is then hashed and compared. But each step of a walk follows
// from what it read before: which rule applies, from the return address; where the next one is, from the rule, and from
// the frame pointer where that is part of it. So if a walk starts at the same frame as before, and each word that the
// former one rested on still holds the same, it would find the same frames again: exactly, not probably. These loads do
// not depend on each other. That holds whatever stack it is: on another one the walk starts at another frame.

#include "stack/loaded_files.hpp"
#include "stack/rules.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <algorithm>
#include <cstdint>

namespace pmr_debug::stack {

class recent_traces {
public:
    /// Returns: the trace of \p frames frames that begins at \p frame, if it is known here and nothing has changed.
    /// Preconditions: \p frame is the address of a frame of the calling thread, whose table this is.
    // Reads words of other functions' frames, which the sanitizers would take for errors.
    [[nodiscard, gnu::no_sanitize_address, gnu::no_sanitize_thread]] trace_id find(std::uintptr_t frame,
                                                                                   unsigned frames) const noexcept {
        const set& s = sets_[place(frame)];
        const entry* found = &s.ways[0];
        if (found->frame != frame || found->frames != frames || found->values[0] != word(frame + first)) {
            found = &s.ways[1];
            if (found->frame != frame || found->frames != frames) {
                return trace_id::none;
            }
        }
        const entry& e = *found;
        // Always as many, so that no end of a loop is mispredicted. All are in the page of this frame, which can be
        // read.
        std::uintptr_t different = 0;
#pragma GCC unroll 20
        for (unsigned i = 0; i < near_words; ++i) {
            different |= word(frame + e.offsets[i]) ^ e.values[i];
        }
        if (different != 0) [[unlikely]] {
            return trace_id::none;
        }
        return e.more == 0 ? e.id : find_more(e, frame);
    }

    /// Effects: keeps \p id as the trace of \p frames frames that begins at \p frame, as \p w found them; unless that
    /// takes more than fits.
    void keep(std::uintptr_t frame, unsigned frames, trace_id id, const rule_walk& w) noexcept {
        unsigned in_page = 0;
        unsigned beyond = 0;
        for (unsigned i = 0; i < w.word_count; ++i) {
            const bool near = is_near(frame, w.words[i].address) && in_page < near_words;
            (near ? in_page : beyond) += 1;
        }
        if (!w.repeatable || w.word_count == 0 || beyond > far_words || !is_near(frame, w.words[0].address)) {
            return;
        }
        set& s = sets_[place(frame)];
        entry& e = s.ways[s.next];
        s.next ^= 1U;
        e.frame = frame;
        e.frames = static_cast<std::uint16_t>(frames);
        e.id = id;
        e.more = static_cast<std::uint8_t>(beyond + w.file_count);
        e.far_count = static_cast<std::uint8_t>(beyond);
        e.file_count = static_cast<std::uint8_t>(w.file_count);
        in_page = 0;
        beyond = 0;
        for (unsigned i = 0; i < w.word_count; ++i) {
            const watched_word& from = w.words[i];
            const auto offset = static_cast<std::uint32_t>(from.address - frame);
            if (is_near(frame, from.address) && in_page < near_words) {
                e.offsets[in_page] = offset;
                e.values[in_page++] = from.value;
            } else {
                e.far_offsets[beyond] = offset;
                e.far_values[beyond++] = from.value;
            }
        }
        std::fill(e.offsets + in_page, e.offsets + near_words, e.offsets[0]);
        std::fill(e.values + in_page, e.values + near_words, e.values[0]);
        for (unsigned i = 0; i < w.file_count; ++i) {
            e.files[i] = w.files[i];
            e.in_files[i] = w.in_files[i];
        }
    }

    /// Effects: forgets everything.
    void clear() noexcept {
        for (set& s : sets_) {
            s.ways[0].frame = s.ways[1].frame = 0;
        }
    }

private:
    /// Eight frames of code that keeps frame pointers take 17: their return addresses, the frame pointers that lead
    /// from one to the next, and the return address behind.
    static constexpr unsigned near_words = 20;
    static constexpr unsigned far_words = 30;
    /// Of the first return address in its frame.
    static constexpr std::uintptr_t first = sizeof(std::uintptr_t);

    struct alignas(64) entry {
        std::uintptr_t frame;
        trace_id id;
        std::uint16_t frames;
        std::uint8_t more;  ///< there are words beyond, or files to ask for
        std::uint8_t far_count;
        std::uintptr_t values[near_words];  ///< the first: the return address in `frame`
        std::uint32_t offsets[near_words];  ///< from `frame`
        std::uint32_t far_offsets[far_words];
        std::uintptr_t far_values[far_words];
        std::uintptr_t in_files[rule_walk::most_files];  ///< an address in each
        std::uint16_t files[rule_walk::most_files];      ///< that may be unloaded
        std::uint8_t file_count;
    };
    /// Two, so that an allocation and a free that fall on the same place do not chase each other out all the time.
    struct set {
        entry ways[2];
        unsigned next;  ///< the way to use for the next new one
    };
    static constexpr unsigned bits = 6;

    [[gnu::always_inline, gnu::no_sanitize_address, gnu::no_sanitize_thread]] static std::uintptr_t word(
        std::uintptr_t address) noexcept {
        return *reinterpret_cast<const std::uintptr_t*>(address);
    }

    /// Beyond the page of this frame there need be no frame now where one was before, and a program may protect pages
    /// within its stack: what lies there is read only if all below is as it was.
    [[gnu::noinline, gnu::no_sanitize_address, gnu::no_sanitize_thread]] static trace_id find_more(
        const entry& e, std::uintptr_t frame) noexcept {
        for (unsigned i = 0; i < e.far_count; ++i) {
            if (word(frame + e.far_offsets[i]) != e.far_values[i]) {
                return trace_id::none;
            }
        }
        for (unsigned i = 0; i < e.file_count; ++i) {
            if (!is_still_loaded(e.files[i], e.in_files[i])) {
                return trace_id::none;
            }
        }
        return e.id;
    }

    static bool is_near(std::uintptr_t frame, std::uintptr_t address) noexcept {
        constexpr std::uintptr_t smallest_page = 4096;
        return (frame ^ address) < smallest_page;
    }

    /// By frame and return address: two calls in one function share a frame.
    [[gnu::no_sanitize_address, gnu::no_sanitize_thread]] static unsigned place(std::uintptr_t frame) noexcept {
        return static_cast<unsigned>(((frame >> 4) ^ word(frame + first)) * 0x9E3779B97F4A7C15ULL >> (64 - bits));
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
