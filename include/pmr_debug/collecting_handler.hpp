#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// A report handler that keeps what it is told, for tests. Its memory is private pages, so that it does not disturb
/// what is measured.

#include <pmr_debug/report.hpp>

#include <cstddef>
#include <string_view>

namespace pmr_debug {

/// Keeps counts of every report and copies of the first `capacity`.
/// Thread safety: any member from any thread; `clear()` invalidates references handed out before.
class collecting_handler final : public report_handler {
public:
    /// One kept report: a copy of the facts (its `leaks` span and `hint` point into this handler) and its text form
    /// without colour.
    struct entry {
        report facts;
        std::string_view text;
    };

    /// Reports kept whole; later ones are only counted.
    static constexpr std::size_t capacity = 1024;

    explicit collecting_handler(action answer = action::carry_on) noexcept;
    ~collecting_handler() override;

    action handle(const report& r) noexcept override;

    /// Number of reports received, of any kind or of \p kind.
    [[nodiscard]] std::size_t count() const noexcept;
    [[nodiscard]] std::size_t count(error_kind kind) const noexcept;
    /// Number of reports kept whole, at most `capacity`.
    [[nodiscard]] std::size_t size() const noexcept;
    /// Preconditions: \p index < size().
    [[nodiscard]] const entry& operator[](std::size_t index) const noexcept;
    /// The last one kept. Preconditions: size() > 0.
    [[nodiscard]] const entry& back() const noexcept;
    /// Forgets everything.
    void clear() noexcept;

private:
    struct storage;
    storage* storage_;
    action answer_;
};

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE
