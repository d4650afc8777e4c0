#include "os/environment.hpp"
#include "os/guarded.hpp"
#include "os/output.hpp"
#include "os/spare_stack.hpp"
#include "os/thread.hpp"
#include "report/json.hpp"
#include "report/owned_lock.hpp"
#include "report/repeats.hpp"
#include "report/text.hpp"
#include "report/wording.hpp"

#include <pmr_debug/report.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>
#include <new>
#include <string_view>

namespace pmr_debug {

namespace {

constexpr int standard_error = 2;

// One buffer for all handlers: whoever holds the lock fills it, so that a report goes out in one
// write, and no two mix. Untouched pages of it take no memory.
struct output_state {
    detail::owned_lock lock;
    std::atomic<report_handler*> chosen{nullptr};
    std::atomic<text_handler*> shipped{nullptr};
    os::spin_lock making;
    // Never destroyed: resources may report from static destructors that run late.
    alignas(text_handler) unsigned char shipped_storage[sizeof(text_handler)]{};
    char buffer[std::size_t{1} << 18]{};
};
constinit os::guarded<output_state> state;
const os::guard_pages state_guards(state);
constexpr auto& output_lock = state->lock;
constexpr auto& output_buffer = state->buffer;
constexpr auto& chosen_handler = state->chosen;

// Descriptors whose last line was cut, as a disk was full, a bit each. Numbers from 1024 share bits.
constinit std::atomic<std::uint64_t> cut_lines[16]{};

class cut_line {
public:
    explicit cut_line(int descriptor) noexcept
        : word_(cut_lines[static_cast<unsigned>(descriptor) / 64 % std::size(cut_lines)]),
          bit_(std::uint64_t{1} << (static_cast<unsigned>(descriptor) % 64)) {}
    [[nodiscard]] bool get() const noexcept { return (word_.load(std::memory_order_relaxed) & bit_) != 0; }
    void set(bool cut) noexcept {
        if (cut) {
            word_.fetch_or(bit_, std::memory_order_relaxed);
        } else if (get()) {
            word_.fetch_and(~bit_, std::memory_order_relaxed);
        }
    }

private:
    std::atomic<std::uint64_t>& word_;
    std::uint64_t bit_;
};

// A sink to a descriptor; to standard error from the first refusal on, because a finding must not vanish.
class descriptor_output {
public:
    descriptor_output(const detail::output_target& to, bool buffered) noexcept
        : descriptor_(to.descriptor), opened_(opened(to)), buffered_(buffered) {}

    static void sink(std::string_view text, void* context) noexcept {
        auto& self = *static_cast<descriptor_output*>(context);
        if (!self.buffered_) {
            self.write(text);
            return;
        }
        if (text.size() > sizeof output_buffer - self.used_) {
            self.flush();
        }
        // The writer's pieces are far smaller than the buffer.
        std::memcpy(output_buffer + self.used_, text.data(), text.size());
        self.used_ += text.size();
    }

    void flush() noexcept {
        write({output_buffer + room_for_newline, used_ - room_for_newline});
        used_ = room_for_newline;
    }

private:
    static constexpr std::size_t room_for_newline = 1;

    static os::open_file opened(const detail::output_target& to) noexcept {
        return {.device = to.device, .inode = to.inode, .known = to.known};
    }

    // A line that could not be completed is ended first, so that those that follow can be read, whatever it was.
    void write(std::string_view text) noexcept {
        if (text.empty()) {
            return;
        }
        cut_line cut(descriptor_);
        const bool newline_first = first_ && cut.get();
        first_ = false;
        if (newline_first && buffered_) {
            output_buffer[0] = '\n';
            text = {output_buffer, text.size() + 1};
        } else if (newline_first) {
            put("\n");
        }
        if (!put(text) && descriptor_ != standard_error) {
            descriptor_ = standard_error;
            put(newline_first && buffered_ ? text.substr(1) : text);
        }
    }

    bool put(std::string_view text) noexcept {
        std::uint64_t written = 0;
        const bool all = os::write_all(descriptor_, text.data(), text.size(), opened_, &written);
        if (written != 0) {
            cut_line(descriptor_).set(text[written - 1] != '\n');
        }
        return all;
    }

    int descriptor_;
    os::open_file opened_;
    bool buffered_;
    bool first_ = true;
    std::size_t used_ = room_for_newline;
};

detail::output_target target(int descriptor) noexcept {
    const os::open_file file = os::file_behind(descriptor);
    return {.descriptor = descriptor, .device = file.device, .inode = file.inode, .known = file.known};
}

// True once static objects are destroyed, and with them who would tell later what came again.
constinit std::atomic<bool> at_the_end{false};

// With the lock held. Text: one report; JSON: all those of its handler. They are forgotten.
void tell(detail::repeated_report& e) noexcept {
    descriptor_output out(e.to, true);
    if (e.form == detail::report_form::text) {
        detail::write_repeated_text(e, &descriptor_output::sink, &out);
        e = {};
    } else {
        const void* const handler = e.handler;
        detail::write_repeated_json(e, detail::all_repeats(), &descriptor_output::sink, &out);
        for (detail::repeated_report& told : detail::all_repeats()) {
            if (told.handler == handler && told.times != 0) {
                told = {};
            }
        }
    }
    out.flush();
}

// Of one handler, or of all. They are forgotten.
void tell_repeats(const void* handler) noexcept {
    // Asked first: in the child of a fork nobody may be there to release the lock.
    if (!detail::are_of_this_process()) {
        return;
    }
    const detail::owned_guard hold(output_lock);
    if (!hold.has_lock()) {
        return;
    }
    for (detail::repeated_report& e : detail::all_repeats()) {
        if (e.handler != nullptr && (handler == nullptr || e.handler == handler) && e.times != 0) {
            // Who destroys a handler, or aborts, may have little stack.
            os::with_room([](void* entry) { tell(*static_cast<detail::repeated_report*>(entry)); }, &e);
        }
    }
    for (detail::repeated_report& e : detail::all_repeats()) {
        if (handler != nullptr && e.handler == handler) {
            e = {};
        }
    }
}

// After the destructors of static objects, of which many report.
[[gnu::destructor(102)]] void tell_at_the_end() noexcept {
    at_the_end.store(true, std::memory_order_relaxed);
    tell_repeats(nullptr);
}

// Calls \p print with a sink to where \p handler writes, as one piece of output if it can be had. Not if the handler
// has printed an equal report, unless the process ends now: then its end is to be understood from what comes last.
template <class Print>
void output(const void* handler, const detail::output_target& to, detail::report_form form, const report& r, bool ends,
            const Print& print) noexcept {
    const detail::owned_guard hold(output_lock);
    if (!ends && hold.has_lock() && !at_the_end.load(std::memory_order_relaxed) &&
        detail::is_repeated(handler, to, form, r, tell)) {
        return;
    }
    descriptor_output out(to, hold.has_lock());
    print(hold.has_lock() ? detail::symbols::resolved : detail::symbols::raw, &descriptor_output::sink, &out);
    if (hold.has_lock()) {
        out.flush();
    }
}

bool wants_colour(text_handler::options::colour_mode mode, int descriptor) noexcept {
    using colour_mode = text_handler::options::colour_mode;
    if (mode != colour_mode::automatic) {
        return mode == colour_mode::always;
    }
    return !os::start_environment().plain_terminal && os::is_terminal(descriptor);
}

report_handler& shipped_handler() noexcept {
    text_handler* handler = state->shipped.load(std::memory_order_acquire);
    if (handler == nullptr) {
        const std::scoped_lock hold(state->making);
        handler = state->shipped.load(std::memory_order_relaxed);
        if (handler == nullptr) {
            handler = ::new (state->shipped_storage) text_handler;
            state->shipped.store(handler, std::memory_order_release);
        }
    }
    return *handler;
}

}  // namespace

report_handler::~report_handler() = default;

text_handler::text_handler() noexcept : text_handler(options{}) {}

text_handler::text_handler(const options& o) noexcept : options_(o), to_(target(o.descriptor)) {}

text_handler::~text_handler() {
    tell_repeats(this);
}

action text_handler::handle(const report& r) noexcept {
    const text_options how{.colour = wants_colour(options_.colour, options_.descriptor),
                           .max_leak_groups = options_.max_leak_groups,
                           .max_frames = options_.max_frames};
    const bool end = is_leak(r.kind) ? options_.abort_on_leak : options_.abort_on_error && !detail::is_harmless(r);
    output(this, to_, detail::report_form::text, r, end, [&](detail::symbols symbols, text_sink sink, void* context) {
        detail::write_text(r, how, symbols, sink, context);
    });
    return end ? action::abort : action::carry_on;
}

json_handler::json_handler(int descriptor, action after_error) noexcept
    : to_(target(descriptor)), after_error_(after_error) {}

json_handler::~json_handler() {
    tell_repeats(this);
}

action json_handler::handle(const report& r) noexcept {
    const action answer = is_leak(r.kind) || detail::is_harmless(r) ? action::carry_on : after_error_;
    output(
        this, to_, detail::report_form::json, r, answer == action::abort,
        [&](detail::symbols symbols, text_sink sink, void* context) { detail::write_json(r, symbols, sink, context); });
    return answer;
}

void detail::tell_all_repeats() noexcept {
    tell_repeats(nullptr);
}

report_handler& default_report_handler() noexcept {
    report_handler* const handler = chosen_handler.load(std::memory_order_acquire);
    return handler != nullptr ? *handler : shipped_handler();
}

report_handler& set_default_report_handler(report_handler* handler) noexcept {
    report_handler* const before = chosen_handler.exchange(handler, std::memory_order_acq_rel);
    return before != nullptr ? *before : shipped_handler();
}

}  // namespace pmr_debug
