// The tree of scopes, as text.

#include "metadata/arena.hpp"
#include "metadata/registry.hpp"
#include "report/writer.hpp"
#include "resources/tracking_core.hpp"

#include <pmr_debug/tracking_resource.hpp>

#include <cstring>

namespace pmr_debug {

namespace {

using detail::writer;

constexpr std::size_t none = SIZE_MAX;
constexpr std::size_t deepest_drawn = 64;  // further down the lines are no longer indented
constexpr std::string_view unnamed = "(unnamed)";

// A scope as it was when the tree was asked for. Parents come before their children, as they are older.
struct scope {
    const void* address;
    const void* upstream;
    statistics use;
    std::size_t parent = none;
    std::size_t first_child = none;
    std::size_t next = none;  // sibling
    std::size_t depth = 0;
    char name[sizeof metadata::resource_record::name];
};

// Each byte of a name escaped.
using escaped_name = detail::fixed_text<4 * sizeof scope::name>;

escaped_name shown_name(const scope& s) noexcept {
    escaped_name shown;
    writer out(&escaped_name::sink, &shown);
    out.escaped(s.name[0] != '\0' ? std::string_view(s.name) : unnamed);
    out.flush();
    return shown;
}

struct scope_list {
    scope* scopes;
    std::size_t room;
    std::size_t size;
};

bool count_scope(metadata::resource_record& r, void* context) noexcept {
    *static_cast<std::size_t*>(context) += r.kind == metadata::resource_kind::tracking ? 1 : 0;
    return true;
}

bool copy_scope(metadata::resource_record& r, void* context) noexcept {
    auto& list = *static_cast<scope_list*>(context);
    if (r.kind == metadata::resource_kind::tracking && r.core != nullptr) {
        scope& s = *::new (list.scopes + list.size) scope;
        ++list.size;
        s.address = r.address;
        s.upstream = r.upstream;
        s.use = static_cast<detail::tracking_core*>(r.core)->usage.snapshot();
        std::memcpy(s.name, r.name, sizeof s.name);
    }
    return list.size < list.room;
}

// Effects: links what hangs below `root`.
void link(const scope_list& list, std::size_t root) noexcept {
    for (std::size_t i = root + 1; i < list.size; ++i) {
        scope& child = list.scopes[i];
        for (std::size_t k = i; k-- > root;) {
            scope& parent = list.scopes[k];
            if (parent.address == child.upstream && (k == root || parent.parent != none)) {
                child.parent = k;
                child.depth = parent.depth + 1;
                std::size_t* last = &parent.first_child;
                while (*last != none) {
                    last = &list.scopes[*last].next;
                }
                *last = i;
                break;
            }
        }
    }
}

// The next line of the tree, or none.
std::size_t after(const scope_list& list, std::size_t i) noexcept {
    if (list.scopes[i].first_child != none) {
        return list.scopes[i].first_child;
    }
    while (i != none && list.scopes[i].next == none) {
        i = list.scopes[i].parent;
    }
    return i != none ? list.scopes[i].next : none;
}

// Code points, which is columns for most scripts.
std::size_t width(std::string_view text) noexcept {
    std::size_t n = 0;
    for (const char c : text) {
        n += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
    }
    return n;
}

std::size_t indent(const scope& s) noexcept {
    return 4 * (s.depth < deepest_drawn ? s.depth : deepest_drawn);
}

void pad(writer& out, std::size_t columns) noexcept {
    for (; columns != 0; --columns) {
        out.put(' ');
    }
}

void left(writer& out, std::string_view text, std::size_t columns) noexcept {
    out.text(text);
    pad(out, columns > width(text) ? columns - width(text) : 0);
}

void right(writer& out, std::string_view text, std::size_t columns) noexcept {
    pad(out, columns > width(text) ? columns - width(text) : 0);
    out.text(text);
}

template <class Write>
void right(writer& out, std::size_t columns, Write&& write) noexcept {
    detail::fixed_text<32> cell;
    {
        writer in(&cell.sink, &cell);
        write(in);
    }
    right(out, cell.view(), columns);
}

constexpr std::size_t live_columns = 13;
constexpr std::size_t block_columns = 12;
constexpr std::size_t peak_columns = 13;
constexpr std::size_t total_columns = 14;

void draw(writer& out, const scope_list& list, const scope& s, std::size_t name_columns) noexcept {
    // Branches from the outside in: a bar where an ancestor has a younger sibling.
    if (s.depth != 0) {
        const scope* path[deepest_drawn];
        std::size_t drawn = 0;
        for (const scope* at = &s; at->parent != none && drawn < deepest_drawn; at = list.scopes + at->parent) {
            path[drawn++] = at;
        }
        while (drawn > 1) {
            out.text(path[--drawn]->next != none ? "│   " : "    ");
        }
        out.text(s.next != none ? "├── " : "└── ");
    }
    left(out, shown_name(s).view(), name_columns - indent(s));
    right(out, live_columns, [&](writer& w) { w.rounded_bytes(s.use.live_bytes); });
    right(out, block_columns, [&](writer& w) { w.number(s.use.live_blocks); });
    right(out, peak_columns, [&](writer& w) { w.rounded_bytes(s.use.peak_bytes); });
    right(out, total_columns, [&](writer& w) { w.number(s.use.total_allocations); });
    out.put('\n');
}

void draw_all(const scope_list& list, std::size_t root, text_sink sink, void* context) noexcept {
    constexpr std::string_view heading = "scope";
    std::size_t name_columns = heading.size();
    for (std::size_t i = root; i != none; i = after(list, i)) {
        const scope& s = list.scopes[i];
        const std::size_t columns = indent(s) + width(shown_name(s).view());
        name_columns = columns > name_columns ? columns : name_columns;
    }
    writer out(sink, context);
    left(out, heading, name_columns);
    right(out, "live", live_columns);
    right(out, "blocks", block_columns);
    right(out, "most bytes", peak_columns);
    right(out, "allocations", total_columns);
    out.put('\n');
    for (std::size_t i = root; i != none; i = after(list, i)) {
        draw(out, list, list.scopes[i], name_columns);
    }
}

}  // namespace

void tracking_resource_base::write_tree(text_sink sink, void* context) const noexcept {
    // Copied under the registry's lock and written without it: the sink is the caller's code.
    std::size_t count = 0;
    metadata::for_each_living_resource(count_scope, &count);
    metadata::arena* const memory = metadata::process_arena();
    if (memory != nullptr && memory->is_busy_here()) {
        return;
    }
    const std::size_t room = count + 16;
    scope_list list{.scopes = memory != nullptr ? static_cast<scope*>(memory->allocate(room * sizeof(scope))) : nullptr,
                    .room = room,
                    .size = 0};
    if (list.scopes == nullptr) {
        return;
    }
    metadata::for_each_living_resource(copy_scope, &list);
    const auto* const self = static_cast<const std::pmr::memory_resource*>(this);
    for (std::size_t i = 0; i < list.size; ++i) {
        if (list.scopes[i].address == self) {
            link(list, i);
            draw_all(list, i, sink, context);
            break;
        }
    }
    memory->free(list.scopes, room * sizeof(scope));
}

}  // namespace pmr_debug
