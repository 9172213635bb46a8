use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::time::timeout;
use vdisk_engine::ops::map::{MapEntry, MapStep, map};
use vdisk_engine::{Chain, Control, Limits, ops};

use super::paging::Window;
use super::stream::{Hold, Piece, pieces, place};
use super::{Service, Wanted};
use crate::disk::{Layer, OpenSecrets, Opening, open_chain, version};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::jobs::{creatable, engine_options};
use crate::model::{ChainLayer, Extent, Image, ImageId, MapPage, MeasureReport, Page};
use crate::request::{ImageFilter, MapLayer, MapRequest, MeasureRequest, PageRequest};

/// Extents in guest order, made as they are asked for.
pub type ExtentStream = BoxStream<'static, Result<Extent>>;

/// Extents made at once.
const BATCH: usize = 256;

impl Service {
    /// Everything `qemu-img info --output=json` gives, under the same keys. File names are those inside the pool.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `corrupt_image`.
    pub async fn image_info(&self, id: ImageId) -> Result<Value> {
        let limits = self.inner.limits.clone();
        let describe = move |layers: &[Layer], _: &Control| {
            let secrets = OpenSecrets::default();
            let opening = Opening {
                top_only: true,
                metadata_only: true,
                ..Opening::read(&limits, &secrets)
            };
            let chain = open_chain(layers, &opening)?;
            let below = layers.get(1).map(|base| base.record.file.as_str());
            let files = ops::info::children(chain.top(), "file")?;
            Ok(Value::Object(ops::info::describe(chain.top())?.to_json(below, &files)))
        };
        self.look(id, false, describe).await
    }

    /// The backing chain, the image itself first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image_chain(&self, id: ImageId) -> Result<Vec<ChainLayer>> {
        let layers = self.inner.layers(id).await?;
        let layer = |(depth, layer): (u32, Layer)| ChainLayer {
            image_id: Some(layer.record.image.id),
            name: layer.record.image.name,
            format: layer.record.image.format,
            filename: layer.record.file,
            virtual_size: layer.record.image.virtual_size,
            depth,
        };
        Ok((0..).zip(layers).map(layer).collect())
    }

    /// Images built directly on this one.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image_dependents(&self, id: ImageId, page: &PageRequest) -> Result<Page<Image>> {
        self.inner.store.image(id).await?;
        let window = Window::new(page, &self.inner.config.limits)?;
        let filter = ImageFilter {
            backing: Some(id),
            ..ImageFilter::default()
        };
        let images = self
            .inner
            .store
            .list_images(&filter, window.from, window.rows())
            .await?;
        Ok(window.page(images, |image| image.id))
    }

    /// A page of where the image's data lies. One that takes long ends early, if need be within an extent.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `invalid_argument` (range, cursor), `corrupt_image`; `unavailable` when too many
    /// read.
    pub async fn image_map(&self, id: ImageId, request: &MapRequest) -> Result<MapPage> {
        let limits = &self.inner.config.limits;
        let wanted = request
            .limit
            .filter(|limit| *limit > 0)
            .unwrap_or(limits.map_page_default);
        let wanted = usize::try_from(wanted.min(limits.map_page_max)).unwrap_or(usize::MAX);
        let (request, time, limits) = (request.clone(), limits.map_page_time, self.inner.limits.clone());
        // Kept as long as the work lasts, whoever waits for it.
        let place = place(&self.inner.places)?;
        let page = move |layers: &[Layer], control: &Control| {
            let _taken = &place;
            let until = Until {
                extents: wanted,
                moment: Some(Instant::now() + time),
            };
            Survey::new(layers, &request, &limits)?.page(&until, control)
        };
        self.look(id, false, page).await
    }

    /// Where the image's data lies, as a stream of bounded memory; `limit` ends it early.
    ///
    /// # Errors
    /// As [`Service::image_map`]; `unavailable` when too many read; errors met on the way end the stream.
    pub async fn image_map_stream(&self, id: ImageId, request: &MapRequest) -> Result<ExtentStream> {
        let limit = request
            .limit
            .filter(|limit| *limit > 0)
            .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (request, limits) = (request.clone(), self.inner.limits.clone());
        let open = move |layers: &[Layer], _: &Control| {
            let survey = Survey::new(layers, &request, &limits)?;
            Ok((survey.open()?, survey))
        };
        let hold = Hold::new(place(&self.inner.places)?, None);
        let (chain, mut survey) = self.look(id, false, open).await?;
        let (mut left, wanted) = (limit, Wanted::new());
        let control = wanted.control();
        let batches = pieces(hold, move || {
            let until = Until {
                extents: left.min(BATCH),
                moment: None,
            };
            let (extents, next) = survey.extents(&chain, &until, &control)?;
            left -= extents.len();
            Ok(match next.filter(|_| left > 0) {
                Some(next) => {
                    survey.go_on_at(next);
                    Piece::Next(extents)
                }
                None => Piece::Last(extents),
            })
        });
        let flat = batches.map_ok(move |extents| {
            let _goes_with_the_stream = &wanted;
            stream::iter(extents.into_iter().map(Ok))
        });
        Ok(flat.try_flatten().boxed())
    }

    /// How large the image would be in a format.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `unsupported`, `invalid_argument`; `limit_exceeded` when it takes too long; `unavailable` when too
    /// many read.
    pub async fn measure_image(&self, id: ImageId, request: MeasureRequest) -> Result<MeasureReport> {
        let driver = creatable(&request.format, &request.options)?;
        let limits = self.inner.limits.clone();
        let place = place(&self.inner.places)?;
        let measure = move |layers: &[Layer], control: &Control| {
            let _taken = &place;
            let chain = open_chain(layers, &Opening::read(&limits, &OpenSecrets::none_until(control)))?;
            let data = ops::measure::data_ranges(&chain, control)?;
            let options = engine_options(&request.options);
            let measured = ops::measure::measure(driver.name(), chain.virtual_size(), &data, &options, false)?;
            Ok(MeasureReport {
                required: measured.required,
                fully_allocated: measured.fully_allocated,
                bitmaps: measured.bitmaps,
            })
        };
        let time = self.inner.config.limits.measure_time;
        let too_long = |_| {
            let public = format!(
                "measuring took longer than {} seconds; a dry run of the conversion tells its size without this bound",
                time.as_secs_f32()
            );
            ServiceError::new(ErrorCode::LimitExceeded, public)
        };
        timeout(time, self.look(id, false, measure)).await.map_err(too_long)?
    }
}

/// Where a part of a map ends early.
struct Until {
    /// After so many extents.
    extents: usize,
    /// Then, wherever that is.
    moment: Option<Instant>,
}

impl Until {
    fn is_over(&self) -> bool {
        self.moment.is_some_and(|moment| Instant::now() >= moment)
    }
}

/// What part of which chain is looked at.
struct Survey {
    layers: Vec<Layer>,
    top_only: bool,
    limits: Limits,
    start: u64,
    length: u64,
    /// Of what is looked at: a cursor goes on in no other.
    version: u64,
}

impl Survey {
    fn new(layers: &[Layer], request: &MapRequest, limits: &Limits) -> Result<Self> {
        let version = version(layers)?;
        let start = match request.cursor.as_deref().filter(|cursor| !cursor.is_empty()) {
            Some(cursor) => read_cursor(cursor, version)?,
            None => request.start.unwrap_or(0),
        };
        // The length counts from the start that was asked for first, which a cursor keeps as the end.
        let end = match (request.length, request.start) {
            (Some(length), first) => first.unwrap_or(0).saturating_add(length),
            (None, _) => u64::MAX,
        };
        Ok(Self {
            layers: layers.to_vec(),
            top_only: request.layer == MapLayer::Top,
            limits: limits.clone(),
            start,
            length: end.saturating_sub(start),
            version,
        })
    }

    fn open(&self) -> Result<Chain> {
        let secrets = OpenSecrets::default();
        let opening = Opening {
            top_only: self.top_only,
            metadata_only: true,
            ..Opening::read(&self.limits, &secrets)
        };
        let chain = open_chain(&self.layers, &opening)?;
        let (start, size) = (self.start, chain.virtual_size());
        if start > size {
            let public = format!("the map starts at {start}, but the image has {size} bytes");
            return Err(ServiceError::invalid("start", public));
        }
        Ok(chain)
    }

    fn page(&self, until: &Until, control: &Control) -> Result<MapPage> {
        let (extents, next) = self.extents(&self.open()?, until, control)?;
        let next_cursor = next.map(|next| write_cursor(next, self.version));
        Ok(MapPage { extents, next_cursor })
    }

    /// The first extents, and where the next one starts.
    fn extents(&self, chain: &Chain, until: &Until, control: &Control) -> Result<(Vec<Extent>, Option<u64>)> {
        let mut extents = Vec::new();
        let mut map = map(chain, self.start, self.length);
        loop {
            control.check_cancelled()?;
            match map.step()? {
                MapStep::Entry(entry) if extents.len() == until.extents => return Ok((extents, Some(entry.start))),
                MapStep::Entry(entry) => extents.push(self.extent(&entry)),
                MapStep::Onward if until.is_over() => break,
                MapStep::Onward => {}
                MapStep::End => return Ok((extents, None)),
            }
        }
        let next = map.cut().map(|cut| match extents.len() == until.extents {
            true => cut.start,
            false => {
                extents.push(self.extent(&cut));
                cut.start + cut.length
            }
        });
        let end = self.start.saturating_add(self.length).min(chain.virtual_size());
        Ok((extents, next.filter(|next| *next < end)))
    }

    fn go_on_at(&mut self, start: u64) {
        self.length = self.length.saturating_sub(start - self.start);
        self.start = start;
    }

    fn extent(&self, entry: &MapEntry) -> Extent {
        let layer = self.layers.get(entry.depth).filter(|_| entry.present);
        let offset = entry.place.filter(|place| place.file == 0).map(|place| place.offset);
        Extent {
            start: entry.start,
            length: entry.length,
            depth: u32::try_from(entry.depth).unwrap_or(u32::MAX),
            present: entry.present,
            zero: entry.zero,
            data: entry.data,
            compressed: entry.compressed,
            offset,
            filename: layer
                .filter(|_| offset.is_some())
                .map(|layer| layer.record.file.clone()),
            image_id: layer.map(|layer| layer.record.image.id),
        }
    }
}

fn write_cursor(start: u64, version: u64) -> String {
    URL_SAFE_NO_PAD.encode([start.to_be_bytes(), version.to_be_bytes()].concat())
}

fn read_cursor(cursor: &str, version: u64) -> Result<u64> {
    let not_ours = || ServiceError::invalid("cursor", "the cursor is not one of ours");
    let bytes: [u8; 16] = URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(not_ours)?;
    let number = u128::from_be_bytes(bytes);
    let (start, then) = (
        u64::try_from(number >> 64).unwrap_or(0),
        u64::try_from(number & u128::from(u64::MAX)).unwrap_or(0),
    );
    if then != version {
        return Err(ServiceError::invalid(
            "cursor",
            "the image has changed since; start the map again",
        ));
    }
    Ok(start)
}
