#pragma once

// The slow, exact walk, floor 2: by unwind information, no frame pointers needed. Capture knows nothing but this
// interface, so a faster unwinder can take its place.

#include <pmr_debug/policy.hpp>

#include <cstdint>

namespace pmr_debug::stack {

enum class walk_end : std::uint8_t {
    outermost,  ///< the whole stack was walked
    depth,      ///< there are more frames than asked for
    no_rules,   ///< the last frame's code has no unwind information, so its caller is not known
};

/// Most frames one can ask for: a trace, and a few more to see how near the outermost frame is.
inline constexpr unsigned look_ahead = 4;
inline constexpr unsigned max_walk = max_frames + look_ahead;

struct walk {
    std::uintptr_t frames[max_walk];  ///< return addresses, innermost first
    std::uintptr_t slots[max_walk];   ///< where on the stack each was found
    unsigned depth;
    walk_end end;
};

/// Returns: the entry in .eh_frame of the function at \p address, as the unwinder has it: also of code that it was told
/// of by __register_frame, as a just-in-time compiler does, and as the start code of a static program does for all of
/// it. Null: there is none. As slow as a step of the unwinder.
[[nodiscard]] const void* find_entry(std::uintptr_t address) noexcept;

/// Effects: walks up to \p most frames, beginning with the return address of the function whose frame address is
///   \p frame_pointer. For a frame that was interrupted by a signal, the address is one more than the interrupted
///   instruction's: like a return address, it lies behind the instruction it stands for.
/// Takes no lock, allocates nothing.
void unwind(std::uintptr_t frame_pointer, unsigned most, walk& w) noexcept;

}  // namespace pmr_debug::stack
