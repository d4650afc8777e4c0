#pragma once

/// \file
/// The bug catalogue as data: every line with what other tools say of it, and for each line the programs that show it.
/// The tests, the table in docs/catalogue.md and pmr-debug-gallery all read this.

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace catalogue {

/// One line: a bug, and who reported it without this library, at -O0: 'x' reported, '!' a bare crash, ' ' silent.
struct line {
    const char* id;       ///< "1" to "46", "a" to "e"
    const char* section;  ///< heading it stands under
    const char* title;
    char asan;                   ///< g++ with AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer
    char valgrind;               ///< Memcheck
    char debug;                  ///< _GLIBCXX_DEBUG
    const char* open = nullptr;  ///< what of it has no program yet
};

/// Does not matter.
inline constexpr std::size_t any = SIZE_MAX;

/// What one report must say. Members left alone are not looked at.
struct finding {
    pmr_debug::error_kind kind{};
    const char* resource = nullptr;  ///< name of the resource that reports
    const char* owner = nullptr;     ///< name of the resource that owns the block
    // Functions that must stand in the traces.
    const char* here = nullptr;
    const char* allocated = nullptr;
    const char* freed = nullptr;
    const char* other = nullptr;
    const char* born = nullptr;  ///< of the resource
    const char* died = nullptr;  ///< of the resource
    std::size_t size = any;      ///< as recorded; of a leak: all bytes
    std::size_t given_size = any;
    std::size_t alignment = any;  ///< as recorded
    std::size_t given_alignment = any;
    std::size_t blocks = any;        ///< of a leak
    std::ptrdiff_t offset = -1;      ///< of the pointer handed in, from the start of the block
    std::ptrdiff_t bad_offset = -1;  ///< of the first damaged byte, from the start of the block
    const char* text = nullptr;      ///< words of the text form
};

/// How the planted program goes on after its last finding.
enum class ending : std::uint8_t {
    returns,  ///< as if nothing had been, since every report is answered with carry_on
    throws,   ///< it hands std::bad_alloc to its caller
    aborts,   ///< the report ends the process, whatever the handler says
    faults,   ///< the processor stops it, and the fault handler explains
};

/// A program with a bug. The corrected twin is the same program but for the bug, and reports nothing.
struct bug {
    const char* line;
    const char* name;
    const char* found_by;  ///< the resource or tool that finds it
    void (*run)(bool planted);
    std::vector<finding> findings{};  ///< of the planted one, in this order, and no others
    ending end = ending::returns;
    /// Words of what the planted one learns by asking, and notes; null: it notes nothing.
    const char* notes = nullptr;
    /// It calls a resource that was destroyed, without a proxy. A sanitizer may have wiped the object's type.
    bool calls_the_dead = false;
};

/// Keeps what a program learned by asking instead of by a report: an arena's advice, the findings of a helper for
/// tests.
void note(std::string_view what);

/// Returns: what was noted since the last call.
[[nodiscard]] std::string take_notes();

/// Every line, in the order of the catalogue.
[[nodiscard]] std::span<const line> lines();

/// Every bug, in the order of the lines.
[[nodiscard]] const std::vector<bug>& bugs();

/// The bugs of a line. Empty: the line is open.
[[nodiscard]] std::vector<const bug*> bugs_of(std::string_view line_id);

// One list a source file.
std::vector<bug> deallocation_bugs();
std::vector<bug> request_bugs();
std::vector<bug> lifetime_bugs();
std::vector<bug> release_bugs();
std::vector<bug> arena_bugs();
std::vector<bug> mark_bugs();
std::vector<bug> default_bugs();
std::vector<bug> placement_bugs();
std::vector<bug> safety_bugs();
std::vector<bug> exception_bugs();

}  // namespace catalogue
