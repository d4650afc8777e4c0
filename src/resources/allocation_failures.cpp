#include <pmr_debug/testing/allocation_failures.hpp>

#include "report/text.hpp"
#include "report/writer.hpp"

namespace pmr_debug::testing {

namespace {

struct frame_state {
    pmr_debug::detail::writer& out;
    std::size_t index;
};

void write_trace(pmr_debug::detail::writer& out, std::string_view title, trace_id trace) noexcept {
    if (trace == trace_id::none) {
        return;
    }
    out.text("  ").text(title).text(":\n");
    frame_state state{out, 0};
    resolve(
        trace,
        [](const resolved_frame& f, void* context) noexcept {
            auto& s = *static_cast<frame_state*>(context);
            if (!f.in_library) {
                pmr_debug::detail::write_frame(s.out, f, s.index++, false);
            }
        },
        &state);
}

}  // namespace

std::string_view to_string(failure_verdict v) noexcept {
    switch (v) {
        case failure_verdict::passed: return "passed";
        case failure_verdict::swallowed: return "swallowed";
        case failure_verdict::endless_retry: return "endless_retry";
        case failure_verdict::nondeterministic: return "nondeterministic";
        case failure_verdict::leak: return "leak";
        case failure_verdict::broken_guarantee: return "broken_guarantee";
        case failure_verdict::misuse: return "misuse";
        case failure_verdict::too_many: return "too_many";
    }
    return "unknown";
}

void write_text(const failure_test_result& r, text_sink sink, void* context) noexcept {
    pmr_debug::detail::writer out(sink, context);
    out.text(to_string(r.verdict));
    if (r.failed != 0) {
        out.text(" when allocation ").number(r.failed).text(" failed");
    }
    if (r.verdict == failure_verdict::leak) {
        out.text(": ").bytes(r.leaked_bytes).text(" in ").count(r.leaked_blocks, "block").text(" left behind");
    }
    if (r.verdict == failure_verdict::misuse) {
        out.text(": ").text(pmr_debug::to_string(r.error));
    }
    out.put('\n');
    write_trace(out, "the allocation that failed", r.where);
    write_trace(out, "the blocks left behind were allocated", r.leaked);
}

}  // namespace pmr_debug::testing
