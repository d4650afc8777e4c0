#pragma once

// Exact walks without the unwinder, floor 2: by rules that are compiled from unwind tables once an address and kept.

#include "stack/unwinder.hpp"

#include <cstdint>

namespace pmr_debug::stack {

/// A word of the stack that a walk rests on.
struct watched_word {
    std::uintptr_t address;
    std::uintptr_t value;
};

/// A walk by rules, and what makes it certain that another one, from the same frame, would find the same: if the words
/// are as they were and the code is the same, it reads the same, step by step.
struct rule_walk : walk {
    /// Each frame's return address, and the frame pointer that leads on from it.
    static constexpr unsigned most_words = 2 * (max_walk + 1);
    /// Code that may be unloaded, files of it.
    static constexpr unsigned most_files = 4;

    watched_word words[most_words];
    unsigned word_count;
    std::uint16_t files[most_files];
    std::uintptr_t in_files[most_files];  ///< an address in each
    unsigned file_count;
    unsigned kept;    ///< frames within the budget; more than `depth`: all
    bool repeatable;  ///< what was found fits here, so that it can be looked for again
    bool unverified;  ///< leads through code that is taken to keep frame pointers
};

/// Effects: as unwind(), until \p budget frames of the program were found; library code is for nothing, and of code of
/// which it is not known, because its file has no symbols, two count as one, and 16 are for nothing. Then only frames
/// of the C library are walked, which may be the last before the outermost one. No byte outside the stack is read:
/// outside the bounds of the thread's own one, each page is asked for before it is looked at. Takes no lock, allocates
/// nothing; safe in a signal handler. Returns: false if it takes the unwinder.
[[nodiscard]] bool walk_by_rules(std::uintptr_t frame_pointer, unsigned budget, rule_walk& w) noexcept;

/// Returns: how many of the \p depth frames at \p frames are within \p budget; more than \p depth if all are.
[[nodiscard]] unsigned frames_within(const std::uintptr_t* frames, unsigned depth, unsigned budget) noexcept;

/// As trace_by_frame_pointers() and forget_frame_pointers().
bool add_frame_pointer_code(std::uintptr_t begin, std::uintptr_t end) noexcept;
void drop_frame_pointer_code(std::uintptr_t begin) noexcept;

/// For tests: forgets all rules.
void forget_rules() noexcept;

}  // namespace pmr_debug::stack
