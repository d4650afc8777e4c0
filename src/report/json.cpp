#include "report/json.hpp"

#include "report/wording.hpp"

#include <pmr_debug/stack_trace.hpp>

namespace pmr_debug {

namespace detail {

namespace {

constexpr std::size_t most_leak_groups = 1000;

// Writes commas where they belong.
class object {
public:
    explicit object(writer& out) noexcept : out_(out) { out_.put('{'); }
    object(const object&) = delete;
    object& operator=(const object&) = delete;
    ~object() { out_.put('}'); }

    writer& key(std::string_view name) noexcept {
        if (!first_) {
            out_.put(',');
        }
        first_ = false;
        return out_.put('"').text(name).text("\":");
    }
    void number(std::string_view name, std::uint64_t n) noexcept { key(name).number(n); }
    void string(std::string_view name, std::string_view s) noexcept { write_json_string(key(name), s); }
    void boolean(std::string_view name, bool b) noexcept { key(name).text(b ? "true" : "false"); }
    void address(std::string_view name, const void* p) noexcept { key(name).put('"').address(p).put('"'); }

private:
    writer& out_;
    bool first_ = true;
};

struct frame_state {
    writer& out;
    bool first = true;
};

void on_frame(const resolved_frame& frame, void* context) noexcept {
    auto& state = *static_cast<frame_state*>(context);
    if (frame.in_library) {
        return;
    }
    if (!state.first) {
        state.out.put(',');
    }
    state.first = false;
    object o(state.out);
    o.key("address").put('"').hex(frame.address).put('"');
    o.string("function", frame.function);
    o.string("file", frame.file);
    o.number("line", frame.line);
    o.string("module", frame.module);
    o.key("offset").put('"').hex(frame.module_offset).put('"');
    o.boolean("inlined", frame.inlined);
    o.boolean("unloaded", frame.unloaded);
    o.boolean("changed", frame.changed);
}

void write_frames(writer& out, trace_id id, symbols how) noexcept {
    frame_state state{out};
    out.put('[');
    if (how == symbols::resolved) {
        resolve(id, on_frame, &state);
    } else {
        for (const std::uintptr_t address : view(id).frames) {
            resolved_frame frame;
            frame.address = address;
            on_frame(frame, &state);
        }
    }
    out.put(']');
}

void write_resource(writer& out, const resource_ref& r, symbols how) noexcept {
    object o(out);
    o.number("id", r.id);
    o.string("name", r.name);
    o.string("type", r.type);
    o.address("address", r.address);
    o.boolean("alive", r.alive);
    if (is_dead(r)) {
        o.number("destroyed_by_thread", r.died_thread);
        o.boolean("destroyed_at_exit", r.died_at_exit);
    }
    if (r.born != trace_id::none) {
        write_frames(o.key("constructed"), r.born, how);
    }
    if (r.died != trace_id::none) {
        write_frames(o.key("destroyed"), r.died, how);
    }
}

void write_block(writer& out, const report& r) noexcept {
    object o(out);
    o.address("address", r.block.address);
    o.number("size", r.block.size);
    o.number("alignment", r.block.alignment);
    o.number("serial", r.block.serial);
    o.string("state", to_string(r.block.state));
    o.number("alloc_thread", r.block.alloc_thread);
    o.number("free_thread", r.block.free_thread);
    if (r.block.late_alloc_thread) {
        o.number("alloc_thread_at_least", late_threads);
    }
    if (r.block.late_free_thread) {
        o.number("free_thread_at_least", late_threads);
    }
    o.number("owners", r.block.owners);
    o.boolean("nearest_only", r.nearest_only);
}

void write_damage(writer& out, const report& r) noexcept {
    object o(out);
    o.address("address", r.first_bad);
    if (r.block.address != nullptr) {
        o.key("offset").signed_number(static_cast<std::int64_t>(distance(r.block.address, r.first_bad)));
    }
    o.number("bytes", r.bad_bytes);
    o.number("found", r.bad_value);
    o.number("expected", r.expected_value);
}

void write_leaks(object& o, const report& r, symbols how) noexcept {
    o.number("leaked_blocks", r.leaked_blocks);
    o.number("leaked_bytes", r.leaked_bytes);
    if (r.listed_blocks != 0) {
        object listed(o.key("listed_before"));
        listed.number("blocks", r.listed_blocks);
        listed.number("bytes", r.listed_bytes);
        if (r.listed_by.id != 0) {
            write_resource(listed.key("by"), r.listed_by, how);
            listed.boolean("and_others", r.listed_by_others);
        }
    }
    o.number("call_paths", r.leaks.size());
    writer& out = o.key("leaks").put('[');
    bool first = true;
    for (const leak_group& group :
         r.leaks.first(r.leaks.size() < most_leak_groups ? r.leaks.size() : most_leak_groups)) {
        if (!first) {
            out.put(',');
        }
        first = false;
        object g(out);
        g.number("blocks", group.blocks);
        g.number("bytes", group.bytes);
        g.address("example", group.example);
        g.number("example_size", group.example_size);
        write_frames(g.key("allocated"), group.allocated, how);
    }
    out.put(']');
}

void write_traces(object& o, const report& r, symbols how) noexcept {
    struct entry {
        std::string_view name;
        trace_id id;
    };
    const entry entries[] = {{"here", r.here},
                             {"allocated", r.allocated},
                             {"freed", r.freed},
                             {"former_allocated", r.former_allocated},
                             {"former_freed", r.former_freed},
                             {"other", r.other}};
    {
        object traces(o.key("traces"));
        for (const entry& e : entries) {
            if (e.id != trace_id::none) {
                write_frames(traces.key(e.name), e.id, how);
            }
        }
    }
    const auto list = [&](std::string_view key, bool trace_flags::*flag) noexcept {
        writer& out = o.key(key).put('[');
        bool first = true;
        for (const entry& e : entries) {
            if (view(e.id).flags.*flag) {
                if (!first) {
                    out.put(',');
                }
                write_json_string(out, e.name);
                first = false;
            }
        }
        out.put(']');
    };
    list("cut_short", &trace_flags::cut_short);
    list("unverified", &trace_flags::unverified);
}

}  // namespace

void write_json_string(writer& out, std::string_view s) noexcept {
    out.put('"');
    while (!s.empty()) {
        const std::size_t length = utf8_length(s);
        const auto byte = static_cast<unsigned char>(s[0]);
        if (length == 0) {
            out.text("\\ufffd");
        } else if (length > 1) {
            out.text(s.substr(0, length));
        } else if (byte == '"' || byte == '\\') {
            out.put('\\').put(s[0]);
        } else if (byte < 0x20 || byte == 0x7f) {
            constexpr std::string_view digits = "0123456789abcdef";
            out.text("\\u00").put(digits[byte / 16]).put(digits[byte % 16]);
        } else {
            out.put(s[0]);
        }
        s.remove_prefix(length == 0 ? 1 : length);
    }
    out.put('"');
}

void write_repeated_json(const repeated_report& first, std::span<const repeated_report> all, text_sink sink,
                         void* context) noexcept {
    const auto counts = [&](const repeated_report& e) { return e.handler == first.handler && e.times != 0; };
    std::uint64_t times = 0;
    for (const repeated_report& e : all) {
        times += counts(e) ? e.times : 0;
    }
    writer out(sink, context);
    {
        object o(out);
        o.string("tool", "pmr_debug");
        o.string("kind", "repeated");
        fixed_text<128> headline;
        {
            writer words(&headline.sink, &headline);
            words.count(times, "report").text(" more, equal to others in kind and call paths");
        }
        o.string("headline", headline.view());
        o.key("repeated").put('[');
        bool comma = false;
        for (const repeated_report& e : all) {
            if (!counts(e)) {
                continue;
            }
            if (comma) {
                out.put(',');
            }
            comma = true;
            object one(out);
            one.string("kind", pmr_debug::to_string(e.kind));
            one.number("times", e.times);
            one.string("name", e.name);
            one.string("type", e.type);
            if (is_leak(e.kind)) {
                one.number("leaked_blocks", e.blocks);
                one.number("leaked_bytes", e.bytes);
            }
            write_frames(one.key("here"), e.here, symbols::resolved);
        }
        out.put(']');
    }
    out.put('\n');
}

void write_json(const report& r, symbols how, text_sink sink, void* context) noexcept {
    writer out(sink, context);
    {
        object o(out);
        o.string("tool", "pmr_debug");
        o.string("kind", pmr_debug::to_string(r.kind));
        fixed_text<2048> headline;
        {
            writer words(&headline.sink, &headline);
            write_headline(words, r);
        }
        o.string("headline", headline.view());
        o.number("thread", r.thread);
        if (r.phase != program_phase::running) {
            o.string("phase", to_string(r.phase));
        }
        if (r.phase == program_phase::exit) {
            o.number("other_threads", r.other_threads);
        }
        if (!r.resource.type.empty() || !r.resource.name.empty()) {
            write_resource(o.key("resource"), r.resource, how);
        }
        if (has_other_owner(r)) {
            write_resource(o.key("owner"), r.owner, how);
        }
        if (r.pointer != nullptr) {
            o.address("pointer", r.pointer);
        }
        if (r.faulted) {
            o.string("access", to_string(r.access));
            if (!r.fault_cause.empty()) {
                o.string("fault_cause", r.fault_cause);
            }
        }
        if (r.block.address != nullptr) {
            write_block(o.key("block"), r);
            if (r.pointer != nullptr) {
                o.key("offset").signed_number(static_cast<std::int64_t>(distance(r.block.address, r.pointer)));
            }
        }
        if (r.has_given) {
            object given(o.key("given"));
            given.number("size", r.given_size);
            given.number("alignment", r.given_alignment);
        }
        if (r.first_bad != nullptr) {
            write_damage(o.key("damage"), r);
            if (r.covering.address != nullptr) {
                object covering(o.key("covered_by"));
                covering.address("address", r.covering.address);
                covering.number("size", r.covering.size);
                covering.number("serial", r.covering.serial);
            }
        }
        if (r.other_thread != 0) {
            o.number("other_thread", r.other_thread);
        }
        if (r.limit != 0) {
            o.number("limit", r.limit);
            o.number("in_use", r.in_use);
        }
        if (is_leak(r.kind)) {
            write_leaks(o, r, how);
        }
        write_traces(o, r, how);
        o.string("hint", hint_of(r));
    }
    out.put('\n');
}

}  // namespace detail

void write_json(const report& r, text_sink sink, void* context) noexcept {
    detail::write_json(r, detail::symbols::resolved, sink, context);
}

}  // namespace pmr_debug
