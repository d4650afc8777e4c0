#include "report/dispatch.hpp"

#include "os/guarded.hpp"
#include "os/output.hpp"
#include "os/quiet.hpp"
#include "os/spare_stack.hpp"
#include "os/thread.hpp"
#include "report/repeats.hpp"
#include "report/wording.hpp"
#include "report/writer.hpp"
#include "stack/ending.hpp"
#include "stack/unwinder.hpp"

#include <pmr_debug/policy.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <type_traits>

namespace pmr_debug::detail {

static_assert(std::is_trivially_destructible_v<error_tally>);

namespace {

constexpr unsigned deepest_report = 2;
constexpr int standard_error = 2;

// Calls of handlers under way, in all threads and in this one. initial-exec: no allocation at first use.
constinit os::guarded<std::atomic<unsigned>> state;
const os::guard_pages state_guards(state);
constexpr auto& under_way = *state;
constinit thread_local unsigned depth __attribute__((tls_model("initial-exec"))) = 0;

// A lock of the library's own is held by the thread that asks for it, so nothing that takes locks may be called: no
// handler.
void tell_own_lock() noexcept {
    const trace_id here = capture_trace(max_frames);
    fixed_text<4096> text;
    {
        writer out(&text.sink, &text);
        out.text(
            "pmr_debug: called from within itself: a signal handler used a resource in the middle of that one's "
            "work\n");
        out.text("  threads    reported by ").number(os::this_thread().number).text("\n  here:\n");
        resolve(
            here,
            [](const resolved_frame& f, void* context) noexcept {
                if (f.in_library) {
                    return;
                }
                writer& to = *static_cast<writer*>(context);
                to.text("    ").text(f.function[0] != '\0' ? f.function : f.module);
                f.line != 0 ? to.text("  ").text(f.file).put(':').number(f.line)
                            : to.text("  ").address(reinterpret_cast<const void*>(f.address));
                to.put('\n');
            },
            &out);
        out.text("  hint: allocating, freeing and checking are not for signal handlers; statistics are\n");
    }
    const std::string_view all = text.view();
    os::write_all(standard_error, all.data(), all.size());
}

[[gnu::constructor(101)]] void tell_of_own_locks() noexcept {
    os::tell_own_lock(tell_own_lock);
}

void raw_line(const report& r) noexcept {
    fixed_text<512> line;
    {
        writer out(&line.sink, &line);
        out.text("pmr_debug: while reporting: ");
        write_headline(out, r);
        out.put('\n');
    }
    const std::string_view text = line.view();
    os::write_all(standard_error, text.data(), text.size());
}

// The handler gets a stack of its own: the program's may be a small thread's or a fiber's, and where those end cannot
// be found out.
action hand_over(report_handler& handler, const report& r) noexcept {
    struct call {
        report_handler& handler;
        const report& what;
        action answer;
    } c{handler, r, action::abort};
    under_way.fetch_add(1, std::memory_order_relaxed);
    ++depth;
    os::with_room(
        [](void* context) {
            call& mine = *static_cast<call*>(context);
            mine.answer = mine.handler.handle(mine.what);
        },
        &c);
    --depth;
    under_way.fetch_sub(1, std::memory_order_release);
    return c.answer;
}

// Where on this thread's stack the process is being ended; 0: it is not.
constinit thread_local std::uintptr_t ending __attribute__((tls_model("initial-exec"))) = 0;

/// True if this is called, at whatever depth, from a handler of the program's for the signal that ends the process: to
/// end it again would only run that handler again, and so on until the stack is used up. Not where such a handler left
/// by longjmp, so that the process goes on.
[[gnu::noinline]] bool is_ending() noexcept {
    if (ending == 0) {
        return false;
    }
    stack::walk above;
    stack::unwind(reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)), max_frames, above);
    for (unsigned i = 0; i < above.depth; ++i) {
        if (above.slots[i] == ending) {
            return true;
        }
    }
    return false;
}

[[noreturn, gnu::noinline]] void end_process() noexcept {
    // This function's return address, above the saved frame pointer.
    ending = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)) + sizeof(void*);
    // Let the others finish their reports, but not for ever: one of them may be stuck, or, after a fork, not exist.
    for (int wait = 0; wait < 2'000 && under_way.load(std::memory_order_acquire) > depth; ++wait) {
        os::sleep_ms(1);
    }
    tell_all_repeats();
    os::abort_process();
}

}  // namespace

void add_circumstances(report& r) noexcept {
    r.phase = stack::phase_of(r.here);
    if (r.phase == program_phase::running && os::is_ending()) {
        r.phase = program_phase::thread_end;
    }
    if (r.phase == program_phase::exit) {
        const std::uint32_t threads = os::numbered_threads();
        r.other_threads = threads != 0 ? threads - 1 : 0;
    }
    r.resource.died_at_exit = stack::phase_of(r.resource.died) == program_phase::exit;
    r.owner.died_at_exit = stack::phase_of(r.owner.died) == program_phase::exit;
}

void raise(error_tally& tally, report& r) noexcept {
    count_error(tally, r.kind);
    tell_error(tally, r);
}

void count_error(error_tally& tally, error_kind kind) noexcept {
    tally.counts[static_cast<std::size_t>(kind)].fetch_add(1, std::memory_order_relaxed);
}

void tell_error(const error_tally& tally, report& r) noexcept {
    const os::errno_keeper keep;
    const os::no_cancellation undisturbed;
    if (r.here == trace_id::none) {
        r.here = capture_trace(max_frames);
    }
    r.thread = os::this_thread().number;
    add_circumstances(r);
    if (depth > deepest_report) {
        raw_line(r);
        return;
    }
    report_handler* const handler = tally.handler.load(std::memory_order_acquire);
    if (hand_over(handler != nullptr ? *handler : default_report_handler(), r) == action::abort && !is_ending()) {
        end_process();
    }
}

error_counts snapshot(const error_tally& tally) noexcept {
    error_counts counts;
    for (std::size_t i = 0; i < error_kind_count; ++i) {
        counts[static_cast<error_kind>(i)] = tally.counts[i].load(std::memory_order_relaxed);
    }
    return counts;
}

bool ok(const error_tally& tally) noexcept {
    return snapshot(tally).total() == 0;
}

void null_upstream(std::string_view type, std::string_view name, trace_id here) noexcept {
    const os::no_cancellation undisturbed;
    report r;
    r.kind = error_kind::null_upstream;
    r.resource.type = type;
    r.resource.name = name;
    r.here = here != trace_id::none ? here : capture_trace(max_frames);
    r.thread = os::this_thread().number;
    hand_over(default_report_handler(), r);
    end_process();
}

}  // namespace pmr_debug::detail
