#include "report/text.hpp"

#include "report/copies.hpp"
#include "report/wording.hpp"
#include "stack/names.hpp"

namespace pmr_debug {

namespace detail {

namespace {

// Longer names are cut in the middle: the function's own name and its arguments' end are what people look for.
constexpr std::size_t longest_name = 200;
constexpr std::size_t kept_head = 120;
constexpr std::size_t kept_tail = 76;

constexpr std::string_view red = "\x1b[1;31m";
constexpr std::string_view yellow = "\x1b[1;33m";
constexpr std::string_view bold = "\x1b[1m";
constexpr std::string_view faint = "\x1b[2m";
constexpr std::string_view plain = "\x1b[0m";

constexpr bool is_continuation(char c) noexcept {
    return (static_cast<unsigned char>(c) & 0xC0U) == 0x80;
}

void write_function(writer& out, std::string_view name) noexcept {
    if (name.size() <= longest_name) {
        out.escaped(name);
        return;
    }
    // Do not cut a UTF-8 sequence.
    std::size_t head = kept_head;
    while (head != 0 && is_continuation(name[head])) {
        --head;
    }
    std::size_t tail = name.size() - kept_tail;
    while (tail < name.size() && is_continuation(name[tail])) {
        ++tail;
    }
    out.escaped(name.substr(0, head)).text("…").escaped(name.substr(tail));
}

// Everything one report's writing needs.
class text_form {
public:
    text_form(const report& r, const text_options& options, symbols how, writer& out) noexcept
        : r_(r), options_(options), how_(how), out_(out) {}

    void write() noexcept {
        colour(is_leak(r_.kind) ? yellow : red);
        out_.text("pmr_debug: ");
        write_headline(out_, r_);
        colour(plain);
        out_.put('\n');
        if (all_listed(r_)) {
            out_.put('\n');
            return;
        }
        facts();
        leaks();
        traces();
        if (const std::string_view hint = hint_of(r_); !hint.empty()) {
            out_.text("  hint: ").escaped(hint).put('\n');
        }
        out_.put('\n');
    }

private:
    void colour(std::string_view code) noexcept {
        if (options_.colour) {
            out_.text(code);
        }
    }

    // `  label      ` up to the column where values start.
    writer& row(std::string_view label) noexcept {
        constexpr std::size_t column = 11;
        colour(bold);
        out_.text("  ").text(label);
        colour(plain);
        for (std::size_t at = label.size(); at < column; ++at) {
            out_.put(' ');
        }
        return out_;
    }

    void resource(std::string_view label, const resource_ref& ref) noexcept {
        row(label);
        if (!ref.name.empty()) {
            out_.quoted(ref.name).text(" (");
        }
        out_.text(ref.type);
        if (ref.id != 0 && !is_of_another_copy(ref)) {
            out_.text(" #").number(ref.id);
        }
        if (ref.address != nullptr) {
            out_.text(" at ").address(ref.address);
        }
        if (!ref.name.empty()) {
            out_.put(')');
        }
        out_.text(is_dead(ref) ? ", destroyed\n" : "\n");
    }

    void facts() noexcept {
        if (!r_.resource.type.empty() || !r_.resource.name.empty()) {
            resource("resource", r_.resource);
        }
        if (has_other_owner(r_)) {
            resource("owner", r_.owner);
        }
        const block_info& block = r_.block;
        if (block.address != nullptr) {
            row(was_once(r_)      ? "once"
                : r_.nearest_only ? "nearest"
                                  : "block")
                .address(block.address)
                .text(", ")
                .bytes(block.size);
            if (block.alignment != 0) {
                out_.text(", alignment ").number(block.alignment);
            }
            if (block.serial != 0) {
                out_.text(", serial ").number(block.serial);
            }
            if (block.state != block_state::unknown) {
                out_.text(", ").text(to_string(block.state));
            }
            if (block.owners > 1) {
                out_.text(", owner ").number(block.owners).text(" of ").number(block.owners).text(" of this address");
            }
            out_.put('\n');
        }
        if (r_.pointer != nullptr && r_.pointer != block.address) {
            row("pointer").address(r_.pointer);
            if (block.address != nullptr) {
                out_.text(", ");
                write_position(out_, r_.pointer, block, r_.nearest_only ? "the nearest block" : "the block");
            }
            out_.put('\n');
        }
        if (r_.has_given) {
            const bool request = is_request(r_.kind);
            row(request ? "requested" : "given")
                .text("size ")
                .number(r_.given_size)
                .text(", alignment ")
                .number(r_.given_alignment)
                .put('\n');
            const bool differs = r_.given_size != block.size || r_.given_alignment != block.alignment;
            if (block.address != nullptr && !r_.nearest_only && !request && differs) {
                row("recorded").text("size ").number(block.size);
                out_.text(", alignment ").number(block.alignment).put('\n');
            }
        }
        if (r_.first_bad != nullptr) {
            row("first bad").address(r_.first_bad);
            if (block.address != nullptr) {
                out_.text(", ");
                write_position(out_, r_.first_bad, block, r_.nearest_only ? "the nearest block" : "the block");
            }
            out_.text(": found ").hex(r_.bad_value, 2).text(", expected ").hex(r_.expected_value, 2);
            out_.text("; ").count(r_.bad_bytes, "byte").text(" damaged\n");
        }
        if (r_.covering.address != nullptr) {
            row("covered by").address(r_.covering.address).text(", ").bytes(r_.covering.size);
            out_.text(", serial ").number(r_.covering.serial).text(", ").text(to_string(r_.covering.state)).put('\n');
        }
        threads();
        phase();
        if (r_.limit != 0) {
            row("limit").number(r_.limit).text(", ").number(r_.in_use).text(" in use\n");
        }
    }

    void threads() noexcept {
        struct entry {
            std::string_view what;
            std::uint32_t number;
            bool late = false;
        };
        const entry entries[] = {{"reported by ", r_.thread},
                                 {"allocated by ", r_.block.alloc_thread, r_.block.late_alloc_thread},
                                 {"freed by ", r_.block.free_thread, r_.block.late_free_thread},
                                 {r_.owner.type.empty() ? "bound to " : "meeting ", r_.other_thread}};
        bool first = true;
        for (const entry& e : entries) {
            if (e.number != 0 || e.late) {
                if (first) {
                    row("threads");
                }
                out_.text(first ? "" : ", ").text(e.what);
                if (e.late) {
                    out_.text("a later one (").number(late_threads).text(" or above)");
                } else {
                    out_.number(e.number);
                }
                first = false;
            }
        }
        if (!first) {
            out_.put('\n');
        }
    }

    void phase() noexcept {
        const resource_ref& life = has_other_owner(r_) ? r_.owner : r_.resource;
        const bool outlived = is_dead(life) && life.died_at_exit;
        if (r_.phase == program_phase::exit) {
            row("when").text("at the program's exit: static objects are destroyed");
            if (r_.other_threads != 0) {
                out_.text("; ").count(r_.other_threads, "other thread").text(" that used resources still ");
                out_.text(r_.other_threads == 1 ? "runs" : "run");
            }
        } else if (outlived) {
            row("when").text("the program exits and has destroyed the resource, but thread ").number(r_.thread);
            out_.text(" goes on");
        } else if (r_.phase == program_phase::thread_end) {
            row("when").text("as thread ").number(r_.thread).text(" ends: its thread_local objects are destroyed");
        } else {
            return;
        }
        out_.put('\n');
    }

    void leaks() noexcept {
        std::size_t index = 0;
        std::size_t blocks = 0;
        std::size_t bytes = 0;
        for (const leak_group& group : r_.leaks) {
            if (index == options_.max_leak_groups) {
                break;
            }
            ++index;
            blocks += group.blocks;
            bytes += group.bytes;
            colour(bold);
            out_.text("  leak ").number(index).text(" of ").number(r_.leaks.size()).text(": ");
            out_.bytes(group.bytes).text(" in ").count(group.blocks, "block");
            colour(plain);
            out_.text(group.blocks == 1 ? ", " : ", for example ").address(group.example);
            if (group.blocks != 1) {
                out_.text(" (").count(group.example_size, "byte").put(')');
            }
            out_.text(", allocated:\n");
            frames(group.allocated, "(not kept: the policy keeps 0 frames)");
        }
        if (index < r_.leaks.size()) {
            out_.text("  … and ").count(r_.leaks.size() - index, "more call path").text(" (");
            out_.bytes(r_.leaked_bytes - r_.listed_bytes - bytes).text(" in ");
            out_.count(r_.leaked_blocks - r_.listed_blocks - blocks, "block").text(")\n");
        }
        if (r_.listed_blocks != 0) {
            out_.text("  … and ").bytes(r_.listed_bytes).text(" in ").count(r_.listed_blocks, "more block");
            out_.text(", listed by ");
            write_listed_by(out_, r_);
            out_.put('\n');
        }
    }

    void title(std::string_view what, std::uint32_t thread, bool late = false) noexcept {
        colour(bold);
        out_.text("  ").text(what);
        if (late) {
            out_.text(" by a later thread (").number(late_threads).text(" or above)");
        } else if (thread != 0) {
            out_.text(" by thread ").number(thread);
        }
        colour(plain);
        out_.text(":\n");
    }

    void traces() noexcept {
        constexpr std::string_view not_kept = "(not kept: the policy keeps 0 frames)";
        if (r_.here != trace_id::none) {
            title("here", 0);
            frames(r_.here, "");
        }
        const bool block_known = r_.block.address != nullptr && !is_leak(r_.kind);
        if (block_known || r_.allocated != trace_id::none) {
            const bool mark = r_.kind == error_kind::out_of_order_rewind && !block_known;
            title(r_.nearest_only ? "nearest block allocated"
                  : was_once(r_)  ? "that block was allocated"
                  : mark          ? "mark made"
                                  : "allocated",
                  r_.block.alloc_thread, r_.block.late_alloc_thread);
            frames(r_.allocated, not_kept);
        }
        if (r_.block.state == block_state::freed || r_.freed != trace_id::none) {
            const bool twice = r_.kind == error_kind::double_free;
            // A live block, but a freed one was there before it.
            const bool before = r_.block.state == block_state::live;
            title(r_.nearest_only ? "nearest block freed"
                  : twice         ? "first freed"
                  : before        ? "freed there before"
                                  : "freed",
                  r_.block.free_thread, r_.block.late_free_thread);
            frames(r_.freed, not_kept);
        }
        if (r_.covering.address != nullptr) {
            title("the block that covers it allocated", r_.covering.alloc_thread);
            frames(r_.other, not_kept);
        }
        if (r_.former_allocated != trace_id::none) {
            title("block before it allocated", 0);
            frames(r_.former_allocated, not_kept);
        }
        if (r_.former_freed != trace_id::none) {
            title("block before it freed", 0);
            frames(r_.former_freed, not_kept);
        }
        if (r_.kind == error_kind::foreign_thread && r_.owner.type.empty()) {
            title("other use", r_.other_thread);
            frames(r_.other, not_kept);
        }
        const resource_ref& life = has_other_owner(r_) ? r_.owner : r_.resource;
        if (is_dead(life)) {
            title("resource constructed", 0);
            frames(life.born, "(not kept)");
            title("resource destroyed", life.died_thread);
            frames(life.died, "(not kept)");
        }
    }

    struct frame_state {
        text_form* self;
        std::size_t printed = 0;
        std::size_t left_out = 0;
        std::size_t internal = 0;
    };

    static void on_frame(const resolved_frame& frame, void* context) noexcept {
        auto& state = *static_cast<frame_state*>(context);
        if (frame.in_library) {
            return;
        }
        if (!state.self->options_.standard_internals && stack::is_standard_internal(frame.function)) {
            ++state.internal;
            return;
        }
        if (state.printed == state.self->options_.max_frames) {
            ++state.left_out;
            return;
        }
        write_frame(state.self->out_, frame, state.printed++, state.self->options_.colour);
    }

    void frames(trace_id id, std::string_view if_none) noexcept {
        const trace_view kept = view(id);
        if (kept.frames.empty()) {
            out_.text("    ").text(if_none).put('\n');
            return;
        }
        frame_state state{.self = this};
        if (how_ == symbols::resolved) {
            resolve(id, on_frame, &state);
        } else {
            for (const std::uintptr_t address : kept.frames) {
                resolved_frame frame;
                frame.address = address;
                on_frame(frame, &state);
            }
        }
        if (state.left_out != 0) {
            out_.text("    … and ").count(state.left_out, "more frame").put('\n');
        }
        if (state.internal != 0) {
            colour(faint);
            out_.text("    (").count(state.internal, "frame").text(" inside the standard library not shown)\n");
            colour(plain);
        }
        if (state.printed == 0 && state.left_out == 0 && state.internal == 0) {
            out_.text("    (every kept frame is inside pmr_debug)\n");
        }
        if (kept.flags.unverified) {
            out_.text("    (unverified: code without unwind data, by its frame pointers)\n");
        }
        if (kept.flags.cut_short) {
            out_.text("    (trace cut short: no unwind data)\n");
        }
    }

    const report& r_;
    const text_options& options_;
    symbols how_;
    writer& out_;
};

}  // namespace

namespace {

// `function_name  path/file.cpp:12`
void write_place(writer& out, const resolved_frame& frame, bool colour) noexcept {
    const std::string_view function = frame.function;
    const std::string_view file = frame.file;
    const std::string_view module = frame.module;
    if (!function.empty()) {
        if (colour) {
            out.text(bold);
        }
        write_function(out, function);
        if (colour) {
            out.text(plain);
        }
        out.text("  ");
    }
    if (colour && !function.empty()) {
        out.text(faint);
    }
    if (!file.empty()) {
        out.escaped(file);
        if (frame.line != 0) {
            out.put(':').number(frame.line);
        }
    } else if (!module.empty()) {
        out.escaped(module).put('+').hex(frame.module_offset);
        if (frame.unloaded) {
            out.text(" (unloaded)");
        }
        if (frame.changed) {
            out.text(" (file changed)");
        }
    } else {
        out.hex(frame.address);
    }
    if (colour && !function.empty()) {
        out.text(plain);
    }
}

}  // namespace

void write_frame(writer& out, const resolved_frame& frame, std::size_t index, bool colour) noexcept {
    out.text("    #").number(index).put(' ');
    write_place(out, frame, colour);
    out.text(frame.inlined ? " (inlined)\n" : "\n");
}

void write_text(const report& r, const text_options& options, symbols how, text_sink sink, void* context) noexcept {
    writer out(sink, context);
    text_form(r, options, how, out).write();
}

void write_repeated_text(const repeated_report& e, text_sink sink, void* context) noexcept {
    struct first_frame {
        writer& out;
        bool found = false;
    };
    writer out(sink, context);
    out.text("pmr_debug: ").text(pmr_debug::to_string(e.kind)).text(": ").count(e.times, "more time");
    if (e.name[0] != '\0' || e.type[0] != '\0') {
        out.text(" in ");
        write_short_name(out, {.name = e.name, .type = e.type});
    }
    if (is_leak(e.kind)) {
        out.text(", ").bytes(e.bytes).text(" in ").count(e.blocks, "block");
    }
    out.text(", by the call paths printed before; here: ");
    first_frame state{.out = out};
    resolve(
        e.here,
        [](const resolved_frame& frame, void* c) noexcept {
            auto& first = *static_cast<first_frame*>(c);
            if (!first.found && !frame.in_library && !stack::is_standard_internal(frame.function)) {
                first.found = true;
                write_place(first.out, frame, false);
            }
        },
        &state);
    out.put('\n');
}

}  // namespace detail

void write_text(const report& r, const text_options& options, text_sink sink, void* context) noexcept {
    detail::write_text(r, options, detail::symbols::resolved, sink, context);
}

}  // namespace pmr_debug
