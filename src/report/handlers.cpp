#include "os/thread.hpp"
#include "report/json.hpp"
#include "report/owned_lock.hpp"
#include "report/text.hpp"

#include <pmr_debug/report.hpp>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

namespace pmr_debug {

namespace {

constexpr int standard_error = 2;

// One buffer for all handlers: whoever holds the lock fills it, so that a report goes out in one
// write, and no two mix. Untouched pages of it take no memory.
constinit detail::owned_lock output_lock;
constinit char output_buffer[std::size_t{1} << 18]{};

// A sink to a descriptor; to standard error from the first refusal on, because a finding must not vanish.
class descriptor_output {
public:
    explicit descriptor_output(int descriptor, bool buffered) noexcept : descriptor_(descriptor), buffered_(buffered) {}

    static void sink(std::string_view text, void* context) noexcept {
        auto& self = *static_cast<descriptor_output*>(context);
        if (!self.buffered_) {
            self.write(text.data(), text.size());
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
        write(output_buffer, used_);
        used_ = 0;
    }

private:
    void write(const char* text, std::size_t bytes) noexcept {
        if (!os::write_all(descriptor_, text, bytes) && descriptor_ != standard_error) {
            descriptor_ = standard_error;
            os::write_all(descriptor_, text, bytes);
        }
    }

    int descriptor_;
    bool buffered_;
    std::size_t used_ = 0;
};

// Calls \p print with a sink to \p descriptor, as one piece of output if it can be had.
template <class Print>
void output(int descriptor, const Print& print) noexcept {
    const detail::owned_guard hold(output_lock);
    descriptor_output out(descriptor, hold.has_lock());
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
    const char* const no_colour = std::getenv("NO_COLOR");  // see no-color.org
    const char* const terminal = std::getenv("TERM");
    const bool refused = no_colour != nullptr && *no_colour != '\0';
    const bool dumb = terminal == nullptr || std::strcmp(terminal, "dumb") == 0;
    return !refused && !dumb && os::is_terminal(descriptor);
}

constinit std::atomic<report_handler*> chosen_handler{nullptr};

report_handler& shipped_handler() noexcept {
    alignas(text_handler) static unsigned char storage[sizeof(text_handler)];
    // Never destroyed: resources may report from static destructors that run late.
    static text_handler* const handler = ::new (storage) text_handler;
    return *handler;
}

}  // namespace

report_handler::~report_handler() = default;

text_handler::text_handler() noexcept : text_handler(options{}) {}

text_handler::text_handler(const options& o) noexcept : options_(o) {}

action text_handler::handle(const report& r) noexcept {
    const text_options how{.colour = wants_colour(options_.colour, options_.descriptor),
                           .max_leak_groups = options_.max_leak_groups,
                           .max_frames = options_.max_frames};
    output(options_.descriptor, [&](detail::symbols symbols, text_sink sink, void* context) {
        detail::write_text(r, how, symbols, sink, context);
    });
    const bool end = is_leak(r.kind) ? options_.abort_on_leak : options_.abort_on_error;
    return end ? action::abort : action::carry_on;
}

json_handler::json_handler(int descriptor, action after_error) noexcept
    : descriptor_(descriptor), after_error_(after_error) {}

action json_handler::handle(const report& r) noexcept {
    output(descriptor_, [&](detail::symbols symbols, text_sink sink, void* context) {
        detail::write_json(r, symbols, sink, context);
    });
    return is_leak(r.kind) ? action::carry_on : after_error_;
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
