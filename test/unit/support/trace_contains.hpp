#pragma once

// Looks for a function in a trace.

#include <pmr_debug/stack_trace.hpp>

#include <string_view>

namespace test_support {

/// True if one of the frames of \p id is in a function whose name contains \p function.
inline bool trace_contains(pmr_debug::trace_id id, std::string_view function) {
    struct search {
        std::string_view function;
        bool found;
    } s{function, false};
    pmr_debug::resolve(
        id,
        [](const pmr_debug::resolved_frame& f, void* context) noexcept {
            auto& want = *static_cast<search*>(context);
            want.found = want.found || std::string_view(f.function).find(want.function) != std::string_view::npos;
        },
        &s);
    return s.found;
}

}  // namespace test_support
