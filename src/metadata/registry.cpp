#include "metadata/registry.hpp"

#include "metadata/arena.hpp"
#include "os/thread.hpp"

#include <cstring>
#include <mutex>
#include <new>

namespace pmr_debug::metadata {

namespace {

// Records sit in blocks that are never freed or moved; `published` counts those a reader may look at.
constexpr std::size_t block_records = 128;

struct record_block {
    resource_record records[block_records];
    std::atomic<record_block*> next{nullptr};
};

constinit std::atomic<record_block*> first_block{nullptr};
constinit std::atomic<std::size_t> published{0};
constinit os::spin_lock writer;

record_block* new_block() noexcept {
    arena* const memory = process_arena();
    void* const p = memory != nullptr ? memory->allocate(sizeof(record_block)) : nullptr;
    return p != nullptr ? ::new (p) record_block : nullptr;
}

resource_record* next_record(std::size_t index) noexcept {
    std::atomic<record_block*>* link = &first_block;
    for (std::size_t skip = index / block_records; skip != 0; --skip) {
        link = &link->load(std::memory_order_acquire)->next;
    }
    record_block* block = link->load(std::memory_order_acquire);
    if (block == nullptr) {
        block = new_block();
        if (block == nullptr) {
            return nullptr;
        }
        link->store(block, std::memory_order_release);
    }
    return &block->records[index % block_records];
}

}  // namespace

resource_record* register_resource(resource_kind kind, const char* type, std::string_view name, const void* address,
                                   const void* upstream, void* core, trace_id born) noexcept {
    const std::scoped_lock hold(writer);
    const std::size_t index = published.load(std::memory_order_relaxed);
    resource_record* const r = next_record(index);
    if (r == nullptr) {
        return nullptr;
    }
    r->id = index + 1;
    r->address = address;
    r->upstream = upstream;
    r->core = core;
    r->kind = kind;
    r->born = born;
    r->type = type;
    const std::size_t kept = name.size() < sizeof r->name - 1 ? name.size() : sizeof r->name - 1;
    std::memcpy(r->name, name.data(), kept);
    r->name[kept] = '\0';
    r->alive.store(true, std::memory_order_release);
    published.store(index + 1, std::memory_order_release);
    return r;
}

void unregister_resource(resource_record* r, trace_id died) noexcept {
    if (r == nullptr) {
        return;
    }
    const std::scoped_lock hold(writer);
    r->died = died;
    r->core = nullptr;
    r->alive.store(false, std::memory_order_release);
}

void for_each_resource(bool (*visit)(resource_record& r, void* context) noexcept, void* context) noexcept {
    std::size_t left = published.load(std::memory_order_acquire);
    record_block* block = first_block.load(std::memory_order_acquire);
    for (; left != 0; block = block->next.load(std::memory_order_acquire)) {
        for (std::size_t i = 0; i < block_records && left != 0; ++i, --left) {
            if (!visit(block->records[i], context)) {
                return;
            }
        }
    }
}

resource_record* find_resource(const void* address) noexcept {
    struct search {
        const void* address;
        resource_record* found;
    } s{address, nullptr};
    for_each_resource(
        [](resource_record& r, void* context) noexcept {
            auto& want = *static_cast<search*>(context);
            if (r.address == want.address && r.alive.load(std::memory_order_acquire)) {
                want.found = &r;
                return false;
            }
            return true;
        },
        &s);
    return s.found;
}

resource_ref describe(const resource_record* r) noexcept {
    if (r == nullptr) {
        return {};
    }
    return {.id = r->id,
            .name = r->name,
            .type = r->type,
            .address = r->address,
            .alive = r->alive.load(std::memory_order_acquire),
            .born = r->born,
            .died = r->died};
}

}  // namespace pmr_debug::metadata
