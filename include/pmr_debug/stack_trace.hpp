#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Stack traces in three stages, so that each cost is visible where it is paid:
/// `capture_trace()` costs nanoseconds and returns a 4-byte `trace_id`; `view()` gives the raw addresses behind an id;
/// `resolve()` finds functions, files and lines, slowly, for reports only.
///
/// Memory: a process-wide depot in private pages, append-only; a trace is stored once however often it is captured.
///
/// \code
///   pmr_debug::trace_id id = pmr_debug::capture_trace(8);
///   pmr_debug::resolve(id, [](const pmr_debug::resolved_frame& f, void*) noexcept { std::puts(f.function); },
///   nullptr);
/// \endcode

#include <cstddef>
#include <cstdint>
#include <span>

namespace pmr_debug {

/// Names a trace in the process-wide depot. The value is stable for the life of the process.
enum class trace_id : std::uint32_t { none = 0 };

/// What is known of how a trace was taken.
struct trace_flags {
    /// The trace ends before the outermost frame because its depth was reached.
    bool depth_reached = false;
    /// The trace ends early: the code of its last frame has no unwind information, so who called it is not known.
    bool cut_short = false;
    /// It leads through code that was registered as keeping frame pointers, see trace_by_frame_pointers(): what lies
    /// beyond rests on that alone.
    bool unverified = false;
};

/// A stored trace: return addresses, innermost first. Points into the depot, valid for the life of the process.
struct trace_view {
    std::span<const std::uintptr_t> frames;
    trace_flags flags;
};

/// One source-level frame. One address may resolve to several: inlined calls come first, innermost first. All strings
/// are NUL-terminated and valid only during the call that hands the frame out; an empty string means unknown.
struct resolved_frame {
    std::uintptr_t address = 0;        ///< return address as captured
    const char* function = "";         ///< demangled name
    const char* file = "";             ///< source file as the debug information has it
    unsigned line = 0;                 ///< 1-based, 0 if unknown
    const char* module = "";           ///< path of the executable or shared library
    std::uintptr_t module_offset = 0;  ///< offset of the address in the module's file image, bytes
    bool inlined = false;              ///< this frame was inlined into the next one
    bool unloaded = false;             ///< its file was unloaded since; `module` is what it was
    bool changed = false;              ///< the file at `module` is another one by now, so names are from memory only
    bool in_library = false;           ///< belongs to pmr_debug itself; reports drop these
};

/// Receives frames from `resolve()`. \p context is what the caller passed.
using frame_visitor = void (*)(const resolved_frame& frame, void* context) noexcept;

/// Effects: captures the calling thread's stack from the caller of this function outwards, until it has
///   \p frames frames of the program (clamped to `max_frames`), and interns it. Frames of the standard library, the C
///   library and this one are kept, but not counted; where a file has no symbols to tell by, two count as one, and 16
///   frames are kept at least. More than `max_frames` are never kept.
/// Returns: its id; `trace_id::none` if \p frames is 0 or the depot is full (counted in `depot_stats()`).
/// Thread safety: any thread, no lock, no allocation from the program.
[[nodiscard]] trace_id capture_trace(unsigned frames) noexcept;

/// Effects: from now on, traces go on through code in [begin, end) that has no unwind information, as a just-in-time
///   compiler's or an assembler's, by its frame pointers, and are marked as unverified. Code there that does not keep
///   them, or moves others' into the register, gives wrong traces.
/// Returns: false if there are 64 such ranges already, or it is empty.
/// Thread safety: any thread, no lock.
bool trace_by_frame_pointers(const void* begin, const void* end) noexcept;

/// Effects: undoes one call of trace_by_frame_pointers() with the same \p begin, as the code goes away. To be called
///   when none of it runs.
/// Thread safety: any thread, no lock.
void forget_frame_pointers(const void* begin) noexcept;

/// Returns: the addresses behind \p id; an empty view for `trace_id::none` or an id that was never given out.
/// Thread safety: any thread, lock-free.
[[nodiscard]] trace_view view(trace_id id) noexcept;

/// Effects: resolves each frame of \p id and hands it to \p visitor, innermost first, library frames included (marked).
///   Uses libbacktrace; where that knows nothing, the dynamic symbol table; where that knows nothing either, module and
///   offset only.
/// Thread safety: any thread; callers are serialised. Allocates nothing from the program's heap.
void resolve(trace_id id, frame_visitor visitor, void* context) noexcept;

/// Size and health of the process-wide trace depot.
struct depot_statistics {
    std::uint64_t traces = 0;  ///< distinct traces stored
    std::uint64_t bytes = 0;   ///< private memory they take, bytes
    std::uint64_t lost = 0;    ///< captures that found the depot full
    std::uint64_t slow_walks =
        0;                        ///< captures for which the unwinder was asked: signal frames, odd rules, unknown code
    std::uint64_t cut_short = 0;  ///< distinct traces that ended early for lack of unwind information
};

/// Returns: a snapshot. Thread safety: any thread.
[[nodiscard]] depot_statistics depot_stats() noexcept;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
