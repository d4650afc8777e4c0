#pragma once

// System calls of the library, made to fail on plan. The linker sends the calls of a test program here (--wrap), those
// of the static library included; nothing in the library knows of it.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace injection {

enum class call : unsigned { map, unmap, protect, advise, remap, key, stack, action, open, look, count };

[[nodiscard]] const char* name_of(call which) noexcept;

inline constexpr unsigned all_calls = (1U << static_cast<unsigned>(call::count)) - 1;
[[nodiscard]] constexpr unsigned only(call which) noexcept {
    return 1U << static_cast<unsigned>(which);
}
/// What the library asks of virtual memory.
inline constexpr unsigned memory_calls =
    only(call::map) | only(call::unmap) | only(call::protect) | only(call::advise) | only(call::remap);

/// Which calls fail: of those in `calls`, the ones numbered from first to last, counted from 1.
struct plan {
    unsigned calls = memory_calls;
    std::uint64_t first = 0;  ///< 0: none
    std::uint64_t last = 0;
    int error = 12;  ///< ENOMEM
};

/// The calls of the calling thread between construction and destruction are counted, and fail by the plan.
class faults {
public:
    explicit faults(const plan& p) noexcept;
    faults(const faults&) = delete;
    faults& operator=(const faults&) = delete;
    ~faults();

    /// Effects: no more fail.
    static void stop() noexcept;
    /// Calls of the plan's kinds so far.
    [[nodiscard]] static std::uint64_t seen() noexcept;
    /// Of those, made to fail.
    [[nodiscard]] static std::uint64_t injected() noexcept;
};

/// Made to fail by this process so far.
[[nodiscard]] std::uint64_t total_injected() noexcept;

/// Ranges that are mapped, by start: end. Only what went through the wrapped calls.
using ranges = std::map<std::uintptr_t, std::uintptr_t>;

/// What the library has mapped now.
[[nodiscard]] ranges mapped();
/// What it wanted to unmap since the last call of this function, and was refused by the plan.
ranges take_refused();

/// Effects: unmaps for real what is left of it. Nobody may know of it any more.
void unmap(const ranges& what);

[[nodiscard]] ranges without(ranges from, const ranges& what);
[[nodiscard]] std::size_t bytes_of(const ranges& r) noexcept;
[[nodiscard]] std::string to_string(const ranges& r);

}  // namespace injection
