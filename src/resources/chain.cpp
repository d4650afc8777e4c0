#include <pmr_debug/chain.hpp>

#include "metadata/registry.hpp"
#include "report/dispatch.hpp"
#include "report/wording.hpp"
#include "report/writer.hpp"
#include "resources/chain_check.hpp"

#include <cstddef>

namespace pmr_debug {

namespace detail {

void report_cycle(const metadata::resource_record* self, error_tally& errors) noexcept {
    if (self == nullptr || self->upstream == nullptr || self->upstream == std::pmr::new_delete_resource()) {
        return;
    }
    if (metadata::leads_to(self->upstream, self->address)) {
        report r;
        r.kind = error_kind::cycle;
        r.resource = metadata::describe(self);
        raise(errors, r);
    }
}

namespace {

constexpr std::size_t deepest_drawn = 64;  // further down the lines are no longer indented

void write_link(writer& out, const metadata::chain_link& link) noexcept {
    const resource_ref& r = link.resource;
    if (r.id == 0) {
        if (r.address == std::pmr::new_delete_resource()) {
            out.text("std::pmr::new_delete_resource()");
        } else if (r.address == std::pmr::null_memory_resource()) {
            out.text("std::pmr::null_memory_resource()");
        } else {
            out.text("memory_resource at ").address(r.address);
        }
        return;
    }
    if (!r.name.empty()) {
        out.quoted(r.name).text(" (").text(r.type).text(" #").number(r.id).put(')');
    } else {
        out.text(r.type).text(" #").number(r.id);
    }
    if (link.stats != nullptr) {
        const statistics s = link.stats(r.address);
        out.text(": ").rounded_bytes(s.live_bytes).text(" live in ").count(s.live_blocks, "block");
    }
}

void indent(writer& out, std::size_t depth) noexcept {
    if (depth == 0) {
        return;
    }
    for (std::size_t i = 1; i < depth && i < deepest_drawn; ++i) {
        out.text("    ");
    }
    out.text("└── ");
}

}  // namespace

}  // namespace detail

void write_chain(const std::pmr::memory_resource& top, text_sink sink, void* context) noexcept {
    static constinit detail::error_tally nobody;
    detail::writer out(sink, context);
    const void* at = &top;
    // A mark that moves up to the current link after 1, 2, 4, 8 … steps is met again in every circle (Brent).
    const void* mark = nullptr;
    std::size_t until_move = 1;
    std::size_t power = 1;
    for (std::size_t depth = 0; at != nullptr; ++depth) {
        const metadata::chain_link link = metadata::link_at(at);
        detail::indent(out, depth);
        if (at == mark) {
            out.text("back at ");
            detail::write_short_name(out, link.resource);
            out.text(": a cycle\n");
            out.flush();
            report r;
            r.kind = error_kind::cycle;
            r.resource = link.resource;
            detail::raise(nobody, r);
            return;
        }
        detail::write_link(out, link);
        out.put('\n');
        if (--until_move == 0) {
            mark = at;
            power *= 2;
            until_move = power;
        }
        at = link.upstream;
    }
}

}  // namespace pmr_debug
