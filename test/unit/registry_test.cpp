#include "metadata/registry.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using pmr_debug::resource_ref;
using pmr_debug::trace_id;
namespace metadata = pmr_debug::metadata;
using metadata::resource_kind;
using metadata::resource_record;

resource_record* add(const void* address, const void* upstream = nullptr, void* core = nullptr,
                     metadata::owns_function owns = nullptr, resource_kind kind = resource_kind::other) {
    return metadata::register_resource(kind, "thing", "a name", address, upstream, core, trace_id{1}, owns);
}

// A resource that owns exactly the block its core points to.
bool owns_core(void* core, const void* p, metadata::owned_block* out) noexcept {
    out->block.address = p;
    return core == p;
}

TEST(registry, finds_the_living_and_remembers_the_dead) {
    int place = 0;
    resource_record* const r = add(&place);
    ASSERT_NE(r, nullptr);
    EXPECT_EQ(metadata::find_resource(&place), r);
    EXPECT_EQ(metadata::find_dead_resource(&place), nullptr);
    metadata::unregister_resource(r, trace_id{2});
    EXPECT_EQ(metadata::find_resource(&place), nullptr);
    ASSERT_EQ(metadata::find_dead_resource(&place), r);
    const resource_ref ref = metadata::describe(r);
    EXPECT_EQ(ref.name, "a name");
    EXPECT_FALSE(ref.alive);
    EXPECT_EQ(ref.died, trace_id{2});
}

TEST(registry, storage_that_is_used_again_ends_the_former_resource) {
    int place = 0;
    int block = 0;
    resource_record* const former = add(&place, nullptr, &block, owns_core);
    resource_record* const r = add(&place);
    metadata::owned_block out;
    EXPECT_EQ(metadata::find_owner(&block, nullptr, metadata::below::ask, &out).id, 0U);
    EXPECT_EQ(metadata::find_resource(&place), r);
    EXPECT_EQ(metadata::find_dead_resource(&place), former);
    EXPECT_EQ(former->died, trace_id{1});
    metadata::unregister_resource(former, trace_id{3});  // too late
    EXPECT_EQ(former->died, trace_id{1});
    EXPECT_EQ(metadata::find_resource(&place), r);
    metadata::unregister_resource(r, trace_id{2});
    EXPECT_EQ(metadata::find_dead_resource(&place), r);
}

TEST(registry, long_names_are_cut_and_empty_ones_are_empty) {
    int place = 0;
    const std::string name(200, 'x');
    resource_record* const r =
        metadata::register_resource(resource_kind::other, "thing", name, &place, nullptr, nullptr, trace_id::none);
    EXPECT_EQ(metadata::describe(r).name, std::string(60, 'x').append("…"));
    metadata::unregister_resource(r, trace_id::none);
    resource_record* const s =
        metadata::register_resource(resource_kind::other, "thing", {}, &place, nullptr, nullptr, trace_id::none);
    EXPECT_EQ(metadata::describe(s).name, "");
    metadata::unregister_resource(s, trace_id::none);
}

TEST(registry, dead_records_are_bounded_and_ids_are_never_used_again) {
    int place = 0;
    int old = 0;
    resource_record* const first = add(&old);
    const std::uint64_t first_id = first->id;
    metadata::unregister_resource(first, trace_id::none);
    std::uint64_t last_id = first_id;
    for (std::size_t i = 0; i < metadata::dead_records_kept + 10; ++i) {
        resource_record* const r = add(&place);
        ASSERT_GT(r->id, last_id);
        last_id = r->id;
        metadata::unregister_resource(r, trace_id::none);
    }
    EXPECT_EQ(metadata::find_dead_resource(&old), nullptr);
    struct seen {
        std::size_t count = 0;
        std::uint64_t last = 0;
        bool ordered = true;
    } s;
    metadata::for_each_resource(
        [](resource_record& r, void* context) noexcept {
            auto& so_far = *static_cast<seen*>(context);
            so_far.ordered = so_far.ordered && r.id > so_far.last;
            so_far.last = r.id;
            ++so_far.count;
            return true;
        },
        &s);
    EXPECT_TRUE(s.ordered);
    EXPECT_GE(s.count, metadata::dead_records_kept);
    EXPECT_LE(s.count, metadata::dead_records_kept + 64);
}

TEST(registry, visits_the_living_only_when_asked_to) {
    int places[3]{};
    resource_record* const a = add(&places[0]);
    resource_record* const b = add(&places[1]);
    resource_record* const c = add(&places[2]);
    metadata::unregister_resource(b, trace_id::none);
    std::vector<const void*> seen;
    seen.reserve(100);
    metadata::for_each_living_resource(
        [](resource_record& r, void* context) noexcept {
            static_cast<std::vector<const void*>*>(context)->push_back(r.address);
            return true;
        },
        &seen);
    EXPECT_EQ(seen, (std::vector<const void*>{&places[0], &places[2]}));
    metadata::unregister_resource(a, trace_id::none);
    metadata::unregister_resource(c, trace_id::none);
}

TEST(registry, the_owner_constructed_last_is_named_and_the_asking_one_never) {
    int block = 0;
    int places[3]{};
    resource_record* const a = add(&places[0], nullptr, &block, owns_core);
    resource_record* const b = add(&places[1], nullptr, &block, owns_core);
    resource_record* const c = add(&places[2], nullptr, &block, owns_core);
    metadata::owned_block out;
    EXPECT_EQ(metadata::find_owner(&block, c, metadata::below::ask, &out).id, b->id);
    EXPECT_EQ(out.block.address, &block);
    EXPECT_EQ(metadata::find_owner(&block, nullptr, metadata::below::ask, &out).id, c->id);
    EXPECT_EQ(metadata::find_owner(&places, c, metadata::below::ask, &out).id, 0U);
    metadata::unregister_resource(b, trace_id::none);
    EXPECT_EQ(metadata::find_owner(&block, c, metadata::below::ask, &out).id, a->id);
    metadata::unregister_resource(a, trace_id::none);
    metadata::unregister_resource(c, trace_id::none);
}

TEST(registry, upstreams_are_asked_with_care) {
    int block = 0;
    int places[3]{};
    resource_record* const pages = add(&places[0], nullptr, &block, owns_core, resource_kind::page);
    resource_record* const heap = add(&places[1], &places[0], nullptr, owns_core);
    resource_record* const scope = add(&places[2], &places[1], nullptr, owns_core);
    metadata::owned_block out;
    EXPECT_EQ(metadata::find_owner(&block, heap, metadata::below::ask, &out).id, pages->id);
    EXPECT_EQ(metadata::find_owner(&block, heap, metadata::below::skip, &out).id, 0U);
    EXPECT_EQ(metadata::find_owner(&block, scope, metadata::below::ask, &out).id, 0U)
        << "a heap's raw memory is not a block of its own";
    heap->core = &block;
    EXPECT_EQ(metadata::find_owner(&block, scope, metadata::below::ask, &out).id, heap->id);
    metadata::unregister_resource(scope, trace_id::none);
    metadata::unregister_resource(heap, trace_id::none);
    metadata::unregister_resource(pages, trace_id::none);
}

}  // namespace
