#pragma once

/// \file
/// The chain of debug resources under the index.
///
/// \verbatim
///   dictionary ─┐
///   names      ─┼─> index ──────────> heap ─────────────> pages
///   text       ─┘   tracking          general purpose     the operating system
///   tracking,       live set, leaks   slots, canaries,
///   counts only                       fills, retirement
/// \endverbatim

#include "index.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <cstddef>

namespace demo {

/// Passes reports on. A block of the index passes through two resources that would both report its leak: once is
/// enough.
class leaks_told_once final : public pmr_debug::report_handler {
public:
    explicit leaks_told_once(pmr_debug::report_handler& inner) noexcept : inner_(inner) {}

    pmr_debug::action handle(const pmr_debug::report& r) noexcept override {
        if (pmr_debug::is_leak(r.kind)) {
            if (leaked_blocks_ != 0) {
                return pmr_debug::action::carry_on;
            }
            leaked_blocks_ = r.leaked_blocks;
        } else {
            ++errors_;
        }
        return inner_.handle(r);
    }

    [[nodiscard]] std::size_t errors() const noexcept { return errors_; }
    [[nodiscard]] std::size_t leaked_blocks() const noexcept { return leaked_blocks_; }

private:
    pmr_debug::report_handler& inner_;
    std::size_t errors_ = 0;
    std::size_t leaked_blocks_ = 0;
};

// Policies as types: their names make shorter frames in reports than a policy's members do.
/// With deeper traces than usual: in a build without optimisation the containers' own functions take most of 8 frames.
struct default_checks {
    static constexpr pmr_debug::policy rules{.alloc_frames = 16, .free_frames = 16};
};
struct fast_checks {
    static constexpr pmr_debug::policy rules = pmr_debug::fast_policy;
};
struct thorough_checks {
    static constexpr pmr_debug::policy rules = pmr_debug::thorough_policy;
};
struct no_checks {
    static constexpr pmr_debug::policy rules = pmr_debug::release_policy;
};

/// The same checks on resources that only one thread may use.
template <class Checks>
struct one_thread_only {
    static constexpr pmr_debug::policy rules = [] {
        pmr_debug::policy p = Checks::rules;
        p.threads = pmr_debug::threading::single_checked;
        return p;
    }();
};

/// Members are destroyed from the last to the first, so each resource outlives those above it.
template <class Checks>
struct debug_chain {
    explicit debug_chain(pmr_debug::report_handler& handler)
        : pages({.name = "pages", .handler = &handler}),
          heap(&pages, {.name = "heap", .handler = &handler}),
          index(&heap, {.name = "index", .handler = &handler}) {}

    [[nodiscard]] index_memory memory() noexcept { return {&dictionary, &names, &text}; }

    // Scopes that only count cost next to nothing; every block is checked once, by the scope they share.
    using counting_scope = pmr_debug::basic_tracking_resource<pmr_debug::release_policy>;

    pmr_debug::page_resource pages;
    pmr_debug::basic_general_purpose_resource<Checks::rules> heap;
    pmr_debug::basic_tracking_resource<Checks::rules> index;
    counting_scope dictionary{&index, {.name = "dictionary"}};
    counting_scope names{&index, {.name = "file names"}};
    counting_scope text{&index, {.name = "text"}};
};

}  // namespace demo
