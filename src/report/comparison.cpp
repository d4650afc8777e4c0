#include "report/comparison.hpp"

#include "metadata/registry.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>

namespace pmr_debug::detail {

namespace {

struct comparison {
    const void* asked = nullptr;
    const void* other = nullptr;
    trace_id here = trace_id::none;
};

// initial-exec: no allocation at first use.
constinit thread_local comparison last __attribute__((tls_model("initial-exec")));

/// Frames of the C library between abort and the kernel, abort's caller included.
constexpr std::size_t most_of_abort = 6;

/// True if the innermost frames of both differ, and all outside them are the same: then the last comparison is the one
/// that was followed by the abort. A resource of another library's notes none.
bool from_one_call(std::span<const std::uintptr_t> aborted, std::span<const std::uintptr_t> compared) noexcept {
    for (std::size_t a = 1; a < std::min(aborted.size(), most_of_abort); ++a) {
        const auto same = std::find(compared.begin(), compared.end(), aborted[a]);
        if (same != compared.begin() && same != compared.end()) {
            const auto outside = aborted.subspan(a);
            const auto left = static_cast<std::size_t>(compared.end() - same);
            return std::equal(same, same + static_cast<std::ptrdiff_t>(std::min(left, outside.size())),
                              outside.begin());
        }
    }
    // The outermost function of the thread did both.
    return compared.size() == 1 && aborted.size() <= most_of_abort;
}

/// True if it is libstdc++'s check of two allocators that aborts. Inlined or not, it has its name.
bool in_equality_check(trace_id aborted) noexcept {
    bool found = false;
    resolve(
        aborted,
        [](const resolved_frame& frame, void* context) noexcept {
            bool& is = *static_cast<bool*>(context);
            is = is || std::string_view(frame.function).find("_M_check_equal_allocators") != std::string_view::npos;
        },
        &found);
    return found;
}

}  // namespace

void note_unequal(const void* asked, const void* other, trace_id here) noexcept {
    last = {asked, other, here};
}

bool has_found_unequal() noexcept {
    return last.asked != nullptr;
}

bool explain_abort(trace_id aborted, report& r) noexcept {
    const comparison c = last;
    if (c.asked == nullptr || !from_one_call(view(aborted).frames, view(c.here).frames) ||
        !in_equality_check(aborted)) {
        return false;
    }
    r.kind = error_kind::wrong_resource;
    r.resource = metadata::peek_resource(c.asked);
    r.owner = metadata::peek_resource(c.other);
    r.here = aborted;
    r.hint = "splice and merge need containers on equal resources: move the elements one by one instead";
    return true;
}

}  // namespace pmr_debug::detail
